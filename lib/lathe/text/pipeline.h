#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lathe/base/json.h"

namespace lathe::text {

/// The stages of a tokenizer, as tokenizer.json names them. Each family of tokenizers adds its own kinds to make_*().

/// Rewrites text before it is split. Text is UTF-8.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual std::string normalize(std::string_view text) const = 0;
};

/// Splits normalized text into words.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  /// Appends views of `text`.
  virtual void split(std::string_view text, std::vector<std::string_view>& words) const = 0;
};

/// Turns a word into ids.
class Model {
 public:
  virtual ~Model() = default;
  virtual void encode(std::string_view word, std::vector<int64_t>& ids) const = 0;
  virtual int64_t vocab_size() const = 0;
  /// -1 when the vocabulary does not hold the token.
  virtual int64_t token_id(std::string_view token) const = 0;
  /// Empty when no token has the id.
  virtual std::string_view token(int64_t id) const = 0;
};

/// Puts tokens back together.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual std::string decode(const std::vector<std::string_view>& tokens) const = 0;
};

/// Each reads one block of tokenizer.json; null JSON gives the kind that changes nothing.
/// Throws Error{Data} naming the file and the key for a kind or an option that Lathe does not know.
std::unique_ptr<Normalizer> make_normalizer(const Json* block, const std::string& file);
std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Json* block, const std::string& file);
std::unique_ptr<Model> make_model(const JsonObject& block);
std::unique_ptr<Decoder> make_decoder(const Json* block, const std::string& file);

}  // namespace lathe::text
