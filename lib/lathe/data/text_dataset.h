#pragma once

#include <string>
#include <utility>
#include <vector>

#include "lathe/text/tokenizer.h"

namespace lathe::data {

enum class TextFormat {
  Auto,       ///< by the fields of the first line
  TextLabel,  ///< {"text": string, "label": string or integer}
  Tokens,     ///< {"input_ids": [integers], "label": string or integer}
};

struct TextDatasetOptions {
  TextFormat format = TextFormat::Auto;
  std::string text_field = "text";
  std::string label_field = "label";
  std::vector<std::string> labels;  ///< names in order; empty: those that occur, sorted
  bool labels_required = true;      ///< false: samples without a label get label -1
};

/// A labelled text, or labelled ids.
struct TextSample {
  std::string text;
  std::vector<int64_t> input_ids;  ///< of the tokens format
  int64_t label = -1;              ///< index into label_names()
  int line = 0;                    ///< in its file
  int file = 0;                    ///< index into files()
};

/// Samples from JSONL files, all parsed and checked when opened. Lines end at '\n'; a '\r' before it is dropped.
class TextDataset {
 public:
  /// Throws Error{Data} with FILE:LINE for bad JSON, a missing or mistyped field, an unknown label; for a file without
  /// samples.
  static TextDataset open(const std::vector<std::string>& files, const TextDatasetOptions& options);

  int64_t size() const { return static_cast<int64_t>(samples_.size()); }
  const TextSample& sample(int64_t index) const { return samples_[static_cast<size_t>(index)]; }
  const std::vector<std::string>& label_names() const { return label_names_; }
  const std::vector<std::string>& files() const { return files_; }
  bool is_tokens() const { return tokens_; }
  /// A hash of every sample in order: a resumed run compares it.
  uint64_t fingerprint() const;

  /// Moves the samples whose content hash falls into the share `fraction` to a second dataset. The hash ignores
  /// differences of white space, so twins go together.
  TextDataset split_off(double fraction);

  /// Removes the samples for which `drop` holds.
  template <typename Predicate>
  int64_t remove_if(Predicate drop) {
    return static_cast<int64_t>(std::erase_if(samples_, drop));
  }

 private:
  void read_file(const std::string& path, const TextDatasetOptions& options);

  std::vector<std::string> files_;
  std::vector<TextSample> samples_;
  std::vector<std::string> raw_labels_;  // of each sample while reading
  std::vector<std::string> label_names_;
  bool tokens_ = false;
};

/// How a sample becomes tokens.
struct TokenizeOptions {
  size_t max_length = 0;
  bool keep_end = false;
};

/// The tokens of a sample, cut to max_length. Throws Error{Data} naming file and line when a tokens sample holds an id
/// outside the vocabulary.
text::Encoding tokenize(const TextDataset& dataset, int64_t index, const text::Tokenizer* tokenizer, int64_t vocab_size,
                        const TokenizeOptions& options);

}  // namespace lathe::data
