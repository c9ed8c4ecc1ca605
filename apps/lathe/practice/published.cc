#include "practice/published.h"

#include "lathe/arch/arch.h"
#include "lathe/base/json.h"

namespace lathe::app::practice {
namespace {

arch::DecoderArch published(const char* config) {
  const Json json = parse_json(config, "config.json");
  return std::get<arch::DecoderArch>(
      arch::read_arch_mapping(JsonObject(json, "config.json"), arch::Families::Planned).arch);
}

}  // namespace

arch::DecoderArch mixtral_8x7b() {
  return published(
      R"({"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
          "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
          "num_experts_per_tok": 2})");
}

arch::DecoderArch llama_2_7b() {
  return published(
      R"({"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
          "num_hidden_layers": 32, "num_attention_heads": 32})");
}

}  // namespace lathe::app::practice
