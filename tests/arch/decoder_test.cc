#include "lathe/arch/decoder.h"

#include <gmock/gmock.h>

#include "expect_error.h"
#include "lathe/arch/arch.h"
#include "temporary_directory.h"

namespace lathe::arch {
namespace {

using testing::error_text;

Json llama() {
  return {{"model_type", "llama"},  {"vocab_size", 11},       {"hidden_size", 8},
          {"intermediate_size", 6}, {"num_hidden_layers", 1}, {"num_attention_heads", 4}};
}

DecoderArch read(const Json& config) { return read_decoder(JsonObject(config, "config.json")); }

std::string refusal(Json config, const char* key, const Json& value) {
  config[key] = value;
  return error_text(ErrorKind::Data, [&] { read(config); });
}

std::vector<std::string> names_of(const DecoderArch& arch) {
  std::vector<std::string> names;
  for (const ParameterSpec& parameter : classifier_parameters(arch, 2)) names.push_back(parameter.name);
  return names;
}

TEST(DecoderArch, NamesParametersAsTransformersDoes) {
  EXPECT_THAT(names_of(read(llama())),
              ::testing::ElementsAre("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
                                     "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
                                     "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.o_proj.weight",
                                     "model.layers.0.post_attention_layernorm.weight",
                                     "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight",
                                     "model.layers.0.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"));
}

TEST(DecoderArch, HasTheBiasesAndNormsOfItsFamily) {
  const auto has = [](Json config, const char* type, const std::string& name) {
    config["model_type"] = type;
    config["num_key_value_heads"] = 4;
    const auto names = names_of(read(config));
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  const std::string attention = "model.layers.0.self_attn.";
  Json biased = llama(), tied = llama();
  biased["attention_bias"] = biased["mlp_bias"] = true;
  tied["tie_word_embeddings"] = true;
  EXPECT_TRUE(has(biased, "llama", attention + "o_proj.bias"));
  EXPECT_TRUE(has(biased, "llama", "model.layers.0.mlp.up_proj.bias"));
  EXPECT_TRUE(has(biased, "qwen3", attention + "o_proj.bias"));
  EXPECT_FALSE(has(biased, "mistral", attention + "q_proj.bias"));
  EXPECT_TRUE(has(llama(), "qwen2", attention + "k_proj.bias"));
  EXPECT_FALSE(has(llama(), "qwen2", attention + "o_proj.bias"));
  EXPECT_TRUE(has(llama(), "qwen3", attention + "q_norm.weight"));
  EXPECT_FALSE(has(llama(), "llama", attention + "q_norm.weight"));
  EXPECT_FALSE(has(tied, "llama", "lm_head.weight"));
}

TEST(DecoderArch, ReadsHeadsOfTheirOwnSize) {
  Json config = llama();
  config["num_key_value_heads"] = 2;
  EXPECT_EQ(read(config).query_size(), 8);
  EXPECT_EQ(read(config).key_value_size(), 4);
  config["head_dim"] = 16;
  EXPECT_EQ(read(config).query_size(), 64);
  config["model_type"] = "qwen3";
  config.erase("head_dim");
  EXPECT_EQ(read(config).head_size, 128);
}

TEST(DecoderArch, RefusesImpossibleSizesByName) {
  EXPECT_EQ(refusal(llama(), "num_key_value_heads", 3),
            "config.json: num_key_value_heads: expected a divisor of num_attention_heads = 4, got 3");
  EXPECT_EQ(refusal(llama(), "hidden_size", 9),
            "config.json: hidden_size: expected a multiple of num_attention_heads = 4, got 9");
  EXPECT_EQ(refusal(llama(), "hidden_size", 1000000000),
            "config.json: hidden_size: expected an integer from 1 to 16777216, got 1000000000");
  EXPECT_EQ(refusal(llama(), "num_hidden_layers", 1000000000),
            "config.json: num_hidden_layers: expected an integer from 1 to 4096, got 1000000000");
  EXPECT_EQ(refusal(llama(), "vocab_size", -1),
            "config.json: vocab_size: expected an integer from 1 to 16777216, got -1");
  EXPECT_EQ(
      refusal(llama(), "head_dim", 16777216),
      "config.json: num_attention_heads: expected heads of 16777216 that are at most 16777216 wide together, got 4");
  EXPECT_EQ(refusal(llama(), "model_type", "mistral"),  // whose default is no number of ours
            "config.json: num_key_value_heads: expected an integer from 1 to 16777216, got nothing");
  EXPECT_EQ(refusal(llama(), "hidden_act", "relu"),
            "config.json: hidden_act: \"relu\" is not supported (supported: silu)");
}

TEST(ReadModelConfig, KnowsDecodersForPlansOnly) {
  const testing::TemporaryDirectory directory;
  const std::string path = directory.write("config.json", llama().dump());
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { read_model_config(path); }),
              ::testing::HasSubstr("model_type: \"llama\" is not supported yet (supported: bert)"));
  const Arch arch = read_model_config(path, Families::Planned).arch;
  EXPECT_TRUE(is_causal(arch));
  EXPECT_EQ(default_target_modules(arch), (std::vector<std::string>{"q_proj", "v_proj"}));
}

}  // namespace
}  // namespace lathe::arch
