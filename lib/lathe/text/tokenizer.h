#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lathe/text/pipeline.h"

namespace lathe::text {

struct EncodeOptions {
  bool special_tokens = true;  ///< add what the post-processor adds ([CLS], [SEP])
  size_t max_length = 0;       ///< tokens to keep, special ones included; 0: all
  bool keep_end = false;       ///< cut at the start instead of the end
};

struct Encoding {
  std::vector<int64_t> ids;
  std::vector<int64_t> type_ids;
  bool truncated = false;
};

/// A Hugging Face tokenizer, read from tokenizer.json: added tokens, normalizer, pre-tokenizer, model, post-processor,
/// decoder. Gives the ids that the library `tokenizers` gives. The file's own truncation and padding are ignored: the
/// caller decides. Immutable; may be used from several threads.
class Tokenizer {
 public:
  /// Throws Error{Data} naming the file and the key: malformed JSON, an unknown kind, ids that clash.
  static Tokenizer from_file(const std::string& path);

  /// `text` is valid UTF-8. With max_length (and not keep_end) the cost follows the tokens kept, not the length of the
  /// text.
  Encoding encode(std::string_view text, const EncodeOptions& options = {}) const;
  /// Special tokens are kept. Ids without a token are left out.
  std::string decode(const std::vector<int64_t>& ids) const;

  int64_t vocab_size() const { return vocab_size_; }
  /// One more than the largest type id that encode() gives.
  int64_t type_vocab_size() const;
  /// What the post-processor adds to a text.
  int64_t num_special_tokens() const;
  std::optional<int64_t> token_id(std::string_view token) const;

 private:
  struct AddedToken {
    std::string content;
    std::string pattern;  // what is looked for: a normalized token's content after the normalizer
    int64_t id;
    bool single_word, strip_left, strip_right, normalized;
  };
  struct Match {
    const AddedToken* token;
    size_t begin, end;
  };
  struct TemplatePiece {
    std::vector<int64_t> ids;  // empty: the sequence
    int64_t type_id;
    bool is_sequence;
  };

  void read_added_tokens(const JsonObject& root);
  void read_template(const JsonObject& root);
  void encode_segment(std::string_view text, std::vector<int64_t>& ids) const;
  void encode_words(std::string_view normalized, std::vector<int64_t>& ids) const;
  // The added tokens of one kind in the text, from left to right, with the white space that they take.
  std::vector<Match> find_added(std::string_view text, bool normalized) const;

  std::vector<AddedToken> added_;
  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Decoder> decoder_;
  std::vector<TemplatePiece> template_;
  int64_t vocab_size_ = 0;
  bool splits_at_spaces_ = false;
};

}  // namespace lathe::text
