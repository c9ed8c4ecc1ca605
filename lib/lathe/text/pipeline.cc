#include "lathe/text/pipeline.h"

#include "lathe/base/error.h"
#include "lathe/base/text.h"
#include "lathe/text/bert.h"
#include "lathe/text/word_piece.h"

namespace lathe::text {
namespace {

// A Sequence block is the stages of its array, one after another.
class NormalizerSequence : public Normalizer {
 public:
  explicit NormalizerSequence(std::vector<std::unique_ptr<Normalizer>> stages) : stages_(std::move(stages)) {}
  std::string normalize(std::string_view text) const override {
    std::string result(text);
    for (const auto& stage : stages_) result = stage->normalize(result);
    return result;
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> stages_;
};

class IdentityNormalizer : public Normalizer {
 public:
  std::string normalize(std::string_view text) const override { return std::string(text); }
};

class NoSplit : public PreTokenizer {
 public:
  void split(std::string_view text, std::vector<std::string_view>& words) const override {
    if (!text.empty()) words.push_back(text);
  }
};

class SpaceDecoder : public Decoder {
 public:
  std::string decode(const std::vector<std::string_view>& tokens) const override {
    std::string text;
    for (const std::string_view token : tokens) text += (text.empty() ? "" : " ") + std::string(token);
    return text;
  }
};

constexpr int kMaxSequenceDepth = 8;

std::unique_ptr<Normalizer> make_normalizer_at(const Json* block, const std::string& file, int depth) {
  if (block == nullptr) return std::make_unique<IdentityNormalizer>();
  const JsonObject object(*block, file, "normalizer");
  const std::string type = object.string("type");
  if (type == "BertNormalizer") return std::make_unique<BertNormalizer>(object);
  if (type == "Sequence" && depth < kMaxSequenceDepth) {
    const Json* list = object.find("normalizers");
    if (list == nullptr || !list->is_array()) throw object.error("normalizers", "expected an array");
    std::vector<std::unique_ptr<Normalizer>> stages;
    for (const Json& stage : *list) stages.push_back(make_normalizer_at(&stage, file, depth + 1));
    return std::make_unique<NormalizerSequence>(std::move(stages));
  }
  throw object.error("type", quote(type) + " is not supported yet", "supported: BertNormalizer, Sequence");
}

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const Json* block, const std::string& file) {
  return make_normalizer_at(block, file, 0);
}

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Json* block, const std::string& file) {
  if (block == nullptr) return std::make_unique<NoSplit>();
  const JsonObject object(*block, file, "pre_tokenizer");
  const std::string type = object.string("type");
  if (type == "BertPreTokenizer") return std::make_unique<BertPreTokenizer>();
  throw object.error("type", quote(type) + " is not supported yet", "supported: BertPreTokenizer");
}

std::unique_ptr<Model> make_model(const JsonObject& block) {
  const std::string type = block.string("type", "WordPiece");
  if (type == "WordPiece") return std::make_unique<WordPiece>(block);
  throw block.error("type", quote(type) + " is not supported yet", "supported: WordPiece");
}

std::unique_ptr<Decoder> make_decoder(const Json* block, const std::string& file) {
  if (block == nullptr) return std::make_unique<SpaceDecoder>();
  const JsonObject object(*block, file, "decoder");
  const std::string type = object.string("type");
  if (type == "WordPiece") return std::make_unique<WordPieceDecoder>(object);
  throw object.error("type", quote(type) + " is not supported yet", "supported: WordPiece");
}

}  // namespace lathe::text
