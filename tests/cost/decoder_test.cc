#include <gmock/gmock.h>

#include "expect_error.h"
#include "lathe/cost/plan.h"
#include "temporary_directory.h"

namespace lathe::cost {
namespace {

using testing::error_text;
using ::testing::HasSubstr;

// V vocabulary, h hidden size, f MLP size, L layers, a heads, k key-value heads, d head size, s tokens, B samples
constexpr Amount V = 100, h = 32, f = 80, L = 3, a = 4, k = 2, d = 12, s = 16, B = 5, T = B * s;
constexpr const char* kDecoder = R"(
model: {task: causal_lm, init: random, max_length: 16, arch: {model_type: llama, vocab_size: 100, hidden_size: 32, intermediate_size: 80, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 12}}
adapter: {type: none}
data: {train: train.jsonl}
optimizer: {lr: 0.001}
training: {max_steps: 2, batch_size: 5}
output: {dir: unused}
)";
constexpr const char* kLoRA = "adapter={type: lora, rank: 2, alpha: 8}";

Plan decoder_plan(const std::vector<std::string>& overrides = {}) {
  const recipe::Recipe recipe = recipe::parse(kDecoder, "recipe.yaml", "/base", overrides, recipe::Purpose::Plan);
  return make_plan(recipe, recipe::resolve_model(recipe));
}

// What autograd keeps of a layer, for each token (cost.md): x, norm(x), q, k, v, attention, u = x + ., norm(u), gate,
// up and their product; in float32 beside them the norms' two roots and attention's log-sum of each head. That is 6h +
// 2kd
// + 3f where a d = h: nn::swiglu computes silu(gate) again, which autograd's operators would keep as a fourth f.
TEST(DecoderPlan, KeepsForAllWeightsWhatTheFormulaSays) {
  const Amount layer = 4 * h + 2 * a * d + 2 * k * d + 3 * f + a + 2;
  const Amount last = h + 1 + h + 1;  // input and root of the last norm; the gradient of the head's input, the losses
  EXPECT_EQ(decoder_plan().memory.activations, T * (L * layer + last) * kFloatBytes);
}

// Frozen norms and matrices keep no input: the product goes, and x in the first layer, whose input needs no gradient;
// x A of two adapters comes. (nn::joint_forward keeps norm(u) although nothing is adapted there.)
TEST(DecoderPlan, KeepsLessForAdaptersOfQueryAndValue) {
  const Amount r = 2, layer = 4 * h + 2 * a * d + 2 * k * d + 2 * f + a + 2 + 2 * r;
  EXPECT_EQ(decoder_plan({kLoRA}).memory.activations, T * (L * layer - h - 1 + 2 * h + 2) * kFloatBytes);
}

// For each layer that is recomputed its input and the generator's state; the last one is not. The layers hold the ids.
TEST(DecoderPlan, KeepsInputsUnderFullCheckpointing) {
  const Amount layer = 4 * h + 2 * a * d + 2 * k * d + 3 * f + a + 2;
  EXPECT_EQ(decoder_plan({"training.activation_checkpointing=full"}).memory.activations,
            T * ((L - 1) * h + layer + 2 * h + 2) * kFloatBytes + 3 * T * kIndexBytes + (L - 1) * kGeneratorStateBytes);
}

// 6 FLOPs for each weight of a product and token; attention: 2 products forward, 5 backward (the scores again).
TEST(DecoderPlan, CountsSixFlopsForEachWeightOfAProduct) {
  const Plan plan = decoder_plan();
  const Amount layer = 2 * h * a * d + 2 * h * k * d + 3 * h * f;
  EXPECT_EQ(plan.flops.linear, 6 * T * (L * layer + V * h));
  EXPECT_EQ(plan.flops.attention, 7 * 2 * T * L * s * a * d);
  EXPECT_EQ(plan.parameters.total(), L * (layer + 2 * h) + 2 * V * h + h);
  EXPECT_EQ(plan.memory.gradients, plan.parameters.total() * kFloatBytes);
}

// LoRA: forward and the gradient of activations, no gradient of weights; none of the first layer's input.
TEST(DecoderPlan, CountsFourFlopsForAFrozenWeight) {
  const Amount layer = 2 * h * a * d + 2 * h * k * d + 3 * h * f, first_qkv = h * a * d + 2 * h * k * d;
  EXPECT_EQ(decoder_plan({kLoRA}).flops.linear, 4 * T * (L * layer + V * h) - 2 * T * first_qkv);
}

TEST(DecoderPlan, NormalisesHeadsOfQwen3) {
  const Plan plain = decoder_plan(), normed = decoder_plan({"model.arch.model_type=qwen3"});
  EXPECT_EQ(normed.parameters.total() - plain.parameters.total(), L * 2 * d);
  EXPECT_EQ(normed.memory.activations - plain.memory.activations, T * L * ((a + k) * d + a + k) * kFloatBytes);
}

TEST(DecoderPlan, TiesTheHeadToTheEmbeddings) {
  const Plan plain = decoder_plan(), tied = decoder_plan({"model.arch.tie_word_embeddings=true"});
  EXPECT_EQ(plain.parameters.total() - tied.parameters.total(), V * h);
  EXPECT_EQ(plain.memory.gradients - tied.memory.gradients, V * h * kFloatBytes);
  EXPECT_EQ(plain.flops.linear, tied.flops.linear);
}

// Experts: two of four work for each token; what is kept is the first product of each assignment.
TEST(DecoderPlan, CountsTheExpertsThatWork) {
  const std::string mixtral =
      "model.arch={model_type: mixtral, vocab_size: 100, hidden_size: 32, intermediate_size: 80, num_hidden_layers: 3, "
      "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 12, num_local_experts: 4, num_experts_per_tok: 2}";
  const Plan plan = decoder_plan({mixtral});
  const Amount attention = 2 * h * a * d + 2 * h * k * d, active = attention + 4 * h + 2 * 3 * h * f;
  EXPECT_EQ(plan.flops.linear, 6 * T * (L * active + V * h));
  EXPECT_EQ(plan.parameters.total() - plan.parameters.active, L * 2 * 3 * h * f);
  EXPECT_EQ(plan.memory.gradients, plan.parameters.total() * kFloatBytes);
}

// 7 billion weights: 4.5 bits for those of linear layers, 16 for embeddings and head, float32 for norms and adapters.
TEST(DecoderPlan, KeepsAFrozenLlamaInFourBits) {
  const testing::TemporaryDirectory directory;
  directory.write("config.json",
                  R"({"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
                      "num_hidden_layers": 32, "num_attention_heads": 32, "torch_dtype": "bfloat16"})");
  const Plan plan =
      decoder_plan({"~model.arch", "model.init=checkpoint", "model.path=" + directory.path().string(),
                    "adapter={type: lora, rank: 16, alpha: 32, target_modules: all-linear}", "quant.type=nf4"});
  const Amount matrices = 32 * (4.0 * 4096 * 4096 + 3.0 * 4096 * 11008), tables = 2.0 * 32000 * 4096;
  const Amount adapters = 32 * 16 * (4.0 * (4096 + 4096) + 3 * (4096.0 + 11008));
  EXPECT_EQ(plan.parameters.adapter, adapters);
  EXPECT_EQ(plan.memory.weights,
            matrices * 0.5625 + 32 * 7 * 64 + tables * 2 + (65 * 4096 + adapters) * kFloatBytes);  // 64: code tables
}

TEST(DecoderPlan, IsAllThatLatheDoesWithDecodersYet) {
  EXPECT_THAT(error_text(ErrorKind::Config, [] { recipe::parse(kDecoder, "recipe.yaml", "/base"); }),
              HasSubstr("model.task: is not supported yet (supported: classification, image_classification)"));
  EXPECT_THAT(error_text(ErrorKind::Config, [] { decoder_plan({"model.moe={num_experts: 4}"}); }),
              HasSubstr("model.moe: is not supported yet for a decoder"));
  EXPECT_THAT(error_text(ErrorKind::Config, [] { decoder_plan({"model.arch.hiden_size=3"}); }),
              HasSubstr("hiden_size: unknown key"));
}

}  // namespace
}  // namespace lathe::cost
