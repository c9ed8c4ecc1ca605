#include "lathe/cost/parameters.h"

#include <gtest/gtest.h>

#include "lathe/base/json.h"

namespace lathe::cost {
namespace {

struct Published {
  const char* name;
  const char* config;  // the sizes of its config.json
  Amount total, active;
};

std::ostream& operator<<(std::ostream& stream, const Published& model) { return stream << model.name; }

class PublishedModel : public ::testing::TestWithParam<Published> {};

arch::Arch read(const char* config) {
  const Json json = parse_json(config, "config.json");
  return arch::read_arch_mapping(JsonObject(json, "config.json"), arch::Families::Planned).arch;
}

TEST_P(PublishedModel, HasAsManyParametersAsItsCheckpoint) {
  const ParameterCount count = count_parameters(read(GetParam().config));
  EXPECT_EQ(count.total, GetParam().total);
  EXPECT_EQ(count.active, GetParam().active);
  Amount sum = 0;
  for (const auto& [kind, elements] : count.kinds) sum += elements;
  EXPECT_EQ(sum, count.total);
}

// The counts that the checkpoints' cards and indexes state.
INSTANTIATE_TEST_SUITE_P(
    Decoders, PublishedModel,
    ::testing::Values(
        Published{
            "Llama_2_7B",
            R"({"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                "num_attention_heads": 32})",
            6738415616, 6738415616},
        Published{
            "Llama_3_8B",
            R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 8})",
            8030261248, 8030261248},
        Published{
            "Llama_3_2_1B",
            R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": true})",
            1235814400, 1235814400},
        Published{
            "Mistral_7B",
            R"({"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096})",
            7241732096, 7241732096},
        Published{
            "Qwen2_5_0_5B",
            R"({"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": true})",
            494032768, 494032768},
        Published{
            "Qwen3_0_6B",
            R"({"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": true})",
            596049920, 596049920},
        Published{
            "Mixtral_8x7B",
            R"({"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2})",
            46702792704, 12879925248},
        Published{
            "Qwen3_30B_A3B",
            R"({"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
                "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
                "moe_intermediate_size": 768, "norm_topk_prob": true, "mlp_only_layers": [], "decoder_sparse_step": 1})",
            30532122624, 3353032704}),
    [](const auto& info) { return std::string(info.param.name); });

// 1000 classes, as timm's checkpoints have them.
TEST(CountParameters, OfMixersAreThoseOfTimm) {
  const auto count = [](int64_t patch, int64_t blocks, int64_t hidden) {
    const Json json = {{"model_type", "mixer"},
                       {"image_size", 224},
                       {"patch_size", patch},
                       {"num_blocks", blocks},
                       {"hidden_size", hidden}};
    return count_parameters(arch::read_arch_mapping(JsonObject(json, "config.json")).arch, 1000).total;
  };
  EXPECT_EQ(count(16, 12, 768), 59880472);
  EXPECT_EQ(count(32, 12, 768), 60293428);
  EXPECT_EQ(count(16, 24, 1024), 208196168);
}

// A sparse layer's dense neighbours keep their MLP: (i + 1) % step == 0 has experts, but for mlp_only_layers.
TEST(CountParameters, FollowsWhichLayersHaveExperts) {
  const auto kinds = [](const char* more) {
    const std::string config =
        std::string(
            R"({"model_type": "qwen3_moe", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 5, "num_hidden_layers": 4,
                "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 3)") +
        more + "}";
    std::map<std::string, Amount> found;
    for (const auto& [kind, elements] : count_parameters(read(config.c_str())).kinds) found[kind] = elements;
    return found;
  };
  const Amount dense = 3 * 8 * 5, sparse = 3 * 8 * 3 * 4, router = 4 * 8;
  auto found = kinds("");
  EXPECT_EQ(found["experts"], 4 * sparse);
  EXPECT_EQ(found["router"], 4 * router);
  EXPECT_EQ(found["mlp"], 0);
  found = kinds(R"(, "decoder_sparse_step": 2, "mlp_only_layers": [3])");
  EXPECT_EQ(found["experts"], sparse);
  EXPECT_EQ(found["mlp"], 3 * dense);
}

}  // namespace
}  // namespace lathe::cost
