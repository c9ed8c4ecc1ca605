#pragma once

#include "lathe/text/pipeline.h"

namespace lathe::text {

/// Hugging Face's BertNormalizer: drops control characters, sets spaces around Chinese characters, strips accents,
/// lowers case.
class BertNormalizer : public Normalizer {
 public:
  /// strip_accents absent means: as lowercase.
  explicit BertNormalizer(const JsonObject& block);
  std::string normalize(std::string_view text) const override;

 private:
  void append(int32_t code_point, std::string& out) const;

  bool clean_text_, handle_chinese_chars_, strip_accents_, lowercase_;
};

/// Hugging Face's BertPreTokenizer: splits at white space, which is dropped, and around each punctuation character.
class BertPreTokenizer : public PreTokenizer {
 public:
  void split(std::string_view text, std::vector<std::string_view>& words) const override;
};

}  // namespace lathe::text
