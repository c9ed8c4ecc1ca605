#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lathe/text/pipeline.h"

namespace lathe::text {

/// A map from text that is searched by views.
struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
template <typename T>
using TextMap = std::unordered_map<std::string, T, TextHash, std::equal_to<>>;

/// Greedy longest-match pieces of a word; a word that cannot be covered, or is too long, is the unknown token.
/// Source: Wu et al. 2016 (arXiv:1609.08144), section 4.1, as in BERT.
class WordPiece : public Model {
 public:
  explicit WordPiece(const JsonObject& block);
  void encode(std::string_view word, std::vector<int64_t>& ids) const override;
  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }
  int64_t token_id(std::string_view token) const override;
  std::string_view token(int64_t id) const override;

 private:
  std::vector<std::string> tokens_;  // by id
  TextMap<int64_t> initial_;         // pieces that begin a word
  TextMap<int64_t> continuing_;      // the others, without their prefix
  size_t longest_piece_ = 0;         // in bytes
  int64_t max_input_chars_per_word_ = 0;
  int64_t unknown_ = 0;
};

/// Joins pieces: a prefixed piece continues its word, any other begins one after a space.
class WordPieceDecoder : public Decoder {
 public:
  explicit WordPieceDecoder(const JsonObject& block);
  std::string decode(const std::vector<std::string_view>& tokens) const override;

 private:
  std::string prefix_;
  bool cleanup_;
};

}  // namespace lathe::text
