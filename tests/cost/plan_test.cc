#include "lathe/cost/plan.h"

#include <gmock/gmock.h>

#include "cost/small_recipe.h"
#include "lathe/cost/closed_forms.h"

namespace lathe::cost {
namespace {

TEST(Plan, CountsParametersAsTheModelHasThem) {
  const recipe::Recipe recipe = small_recipe();
  const Plan plan = make_plan(recipe, recipe::resolve_model(recipe));
  const Amount layer = 4 * (64 * 64 + 64) + 2 * 64 * 128 + 128 + 64 + 4 * 64;
  const Amount tables = (100 + 512 + 2) * 64 + 2 * 64;
  EXPECT_EQ(plan.parameters.base, tables + 6 * layer + (64 * 64 + 64) + (2 * 64 + 2));
  EXPECT_EQ(plan.parameters.adapter, 6 * 4 * (4 * (64 + 64) + 2 * (64 + 128)) + 4 * (64 + 64));
  EXPECT_EQ(plan.parameters.trainable, plan.parameters.adapter + 2 * 64 + 2);
}

// Accumulation repeats the work and keeps the memory; recomputation costs at most one forward pass.
TEST(Plan, ScalesWorkWithAccumulationAndCountsRecomputation) {
  const auto plan = [](const std::vector<std::string>& overrides) {
    const recipe::Recipe recipe = small_recipe(overrides);
    return make_plan(recipe, recipe::resolve_model(recipe));
  };
  const Plan once = plan({}), thrice = plan({"training.gradient_accumulation_steps=3"}),
             full = plan({"training.activation_checkpointing=full"});
  EXPECT_DOUBLE_EQ(thrice.flops.total(), 3 * once.flops.total());
  EXPECT_EQ(thrice.memory.activations, once.memory.activations);
  EXPECT_EQ(once.flops.recompute, 0);
  EXPECT_GT(full.flops.recompute, 0.7 * once.flops.forward);
  EXPECT_LT(full.flops.recompute, once.flops.forward);
  EXPECT_LT(full.memory.activations, 0.4 * once.memory.activations);
  EXPECT_GT(once.flops.head, 0);
  EXPECT_LT(once.flops.head, once.flops.linear);
  EXPECT_DOUBLE_EQ(once.flops.total(), once.flops.linear + once.flops.adapter + once.flops.attention);
}

// By part they add up; the halves of a layer keep what they make.
TEST(Plan, TellsWhichPartKeepsActivations) {
  for (const char* policy : {"none", "elementwise", "full"}) {
    const recipe::Recipe recipe = small_recipe({std::string("training.activation_checkpointing=") + policy});
    const Plan plan = make_plan(recipe, recipe::resolve_model(recipe));
    Amount sum = 0;
    std::vector<std::string> parts;
    for (const auto& [part, bytes] : plan.memory.kept) {
      sum += bytes;
      parts.push_back(part);
    }
    EXPECT_EQ(sum, plan.memory.activations) << policy;
    EXPECT_THAT(parts, ::testing::IsSupersetOf({"attention", "mlp", "head"})) << policy;
    sum = 0;
    for (const auto& [part, bytes] : plan.memory.at_peak) sum += bytes;
    EXPECT_EQ(sum, plan.memory.peak) << policy;
  }
}

// The textbook keeps each operator's output: 22 u of a Mixer's layer (closed_forms.h), 2 a s^2 scores of an encoder's.
TEST(Plan, CountsEveryOperatorsOutput) {
  const auto outputs = [](const std::string& arch, int64_t layers, bool images) {
    recipe::Recipe recipe = small_recipe({"adapter={type: none}", images ? "~model.max_length" : "model.dropout=0",
                                          "model.arch={" + arch + std::to_string(layers) + "}"});
    if (images) recipe.model.task = recipe::Task::ImageClassification;
    return make_plan(recipe, recipe::resolve_model(recipe)).memory.outputs;
  };
  const std::string mixer =
      "model_type: mixer, image_size: 32, patch_size: 4, hidden_size: 96, tokens_hidden_size: 40, "
      "channels_hidden_size: "
      "200, num_blocks: ";
  const MixerSizes sizes{
      .sequence_length = 64, .width = 96, .tokens_hidden_size = 40, .channels_hidden_size = 200, .num_blocks = 1};
  EXPECT_EQ(outputs(mixer, 3, true) - outputs(mixer, 2, true),
            12 * kFloatBytes * mixer_block_kept(sizes, Accounting::Textbook));
  const std::string bert =
      "model_type: bert, vocab_size: 50, hidden_size: 24, intermediate_size: 56, num_attention_heads: 4, "
      "max_position_embeddings: 32, num_hidden_layers: ";
  const Amount S = 32, D = 24, H = 56;  // query, key, value, side by side, context, two products, sums and norms, MLP
  EXPECT_EQ(outputs(bert, 3, false) - outputs(bert, 2, false),
            12 * kFloatBytes * (S * (3 * D + 3 * D + D + 2 * (D + D + D) + 2 * H) + 2 * 4 * S * S));
}

// Under the sanitizers too: what an operator keeps for the backward pass outlives the block that made it.
TEST(Plan, FollowsAMixerBackward) {
  recipe::Recipe recipe =
      small_recipe({"adapter={type: none}", "~model.max_length",
                    "model.arch={model_type: mixer, image_size: 32, patch_size: 4, num_blocks: 3, hidden_size: 96}"});
  recipe.model.task = recipe::Task::ImageClassification;
  const Plan plan = make_plan(recipe, recipe::resolve_model(recipe));
  // 2 FLOPs, three products, 12 samples; the stem needs no gradient of its input.
  const Amount tokens = 2.0 * 96 * 64 * 48, channels = 2.0 * 64 * 96 * 384, stem = 64.0 * 48 * 96, head = 96 * 2;
  EXPECT_DOUBLE_EQ(plan.flops.total(), 2 * 12 * (3 * (3 * (tokens + channels) + head) + 2 * stem));
  EXPECT_EQ(plan.memory.gradients, plan.parameters.total() * kFloatBytes);
}

}  // namespace
}  // namespace lathe::cost
