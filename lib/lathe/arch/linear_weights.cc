#include "lathe/arch/linear_weights.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "lathe/arch/arch.h"
#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

constexpr std::array<std::string_view, 5> kDecoders = {"llama", "mistral", "qwen2", "qwen3", "gemma"};
// Of these families: attention, the MLP, the head, and the head of a sequence classifier.
constexpr std::array<std::string_view, 9> kDecoderLinears = {"q_proj",  "k_proj",    "v_proj",  "o_proj", "gate_proj",
                                                             "up_proj", "down_proj", "lm_head", "score"};

std::set<std::string> decoder_weights(const formats::ModelDirectory& model) {
  std::set<std::string> names;
  for (const formats::TensorLocation& tensor : model.tensors()) {
    const std::string& name = tensor.info.name;
    const bool linear = std::any_of(kDecoderLinears.begin(), kDecoderLinears.end(), [&](std::string_view layer) {
      const std::string ending = std::string(layer) + ".weight";
      return name == ending || name.ends_with("." + ending);
    });
    if (linear) names.insert(name);
  }
  return names;
}

}  // namespace

std::set<std::string> linear_weights(const formats::ModelDirectory& model) {
  const Json json = read_json_file(model.config_path(), 16 << 20);
  const JsonObject config(json, model.config_path());
  const std::string type = config.string("model_type", "");
  if (std::find(kDecoders.begin(), kDecoders.end(), type) != kDecoders.end()) return decoder_weights(model);
  if (type != "bert") {
    throw config.error("model_type", (type.empty() ? "none" : quote(type)) + " is not supported in four bits",
                       "supported: bert, " + join({kDecoders.begin(), kDecoders.end()}, ", "));
  }
  const BertArch arch = read_bert(config);
  std::set<std::string> names;
  for (const LinearSpec& linear : classifier_linears(arch, 2)) {
    for (const std::string& name : spellings(arch, linear.path + ".weight")) {
      if (model.find(name) != nullptr) names.insert(name);
    }
  }
  return names;
}

}  // namespace lathe::arch
