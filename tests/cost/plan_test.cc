#include "lathe/cost/plan.h"

#include <gmock/gmock.h>

#include "cost/small_recipe.h"
#include "expect_error.h"

namespace lathe::cost {
namespace {

using testing::error_text;
using ::testing::HasSubstr;
using Kind = recipe::Checkpointing::Kind;

recipe::Recipe make_recipe(const std::vector<std::string>& overrides = {}) {
  return recipe::parse(kSmallRecipe, "recipe.yaml", "/base", overrides);
}

int64_t peak_of(const recipe::Recipe& recipe) {
  return static_cast<int64_t>(make_plan(recipe, recipe::resolve_model(recipe)).memory.peak);
}

TEST(Plan, CountsParametersAsTheModelHasThem) {
  const recipe::Recipe recipe = make_recipe();
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
    const recipe::Recipe recipe = make_recipe(overrides);
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
  EXPECT_DOUBLE_EQ(once.flops.total(), once.flops.linear + once.flops.adapter + once.flops.attention);
}

// By part they add up; the halves of a layer keep what they make.
TEST(Plan, TellsWhichPartKeepsActivations) {
  for (const char* policy : {"none", "elementwise", "full"}) {
    const recipe::Recipe recipe = make_recipe({std::string("training.activation_checkpointing=") + policy});
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

// Under the sanitizers too: what an operator keeps for the backward pass outlives the block that made it.
TEST(Plan, FollowsAMixerBackward) {
  recipe::Recipe recipe =
      make_recipe({"adapter={type: none}", "~model.max_length",
                   "model.arch={model_type: mixer, image_size: 32, patch_size: 4, num_blocks: 3, hidden_size: 96}"});
  recipe.model.task = recipe::Task::ImageClassification;
  const Plan plan = make_plan(recipe, recipe::resolve_model(recipe));
  // 2 FLOPs, three products, 12 samples; the stem needs no gradient of its input.
  const Amount tokens = 2.0 * 96 * 64 * 48, channels = 2.0 * 64 * 96 * 384, stem = 64.0 * 48 * 96, head = 96 * 2;
  EXPECT_DOUBLE_EQ(plan.flops.total(), 2 * 12 * (3 * (3 * (tokens + channels) + head) + 2 * stem));
  EXPECT_EQ(plan.memory.gradients, plan.parameters.total() * kFloatBytes);
}

TEST(Settle, TakesTheLargestDivisorThatFits) {
  const recipe::Recipe open = make_recipe({"training.batch_size=auto", "training.global_batch_size=12"});
  const recipe::ResolvedModel model = recipe::resolve_model(open);
  for (const int64_t size : {12, 6, 4, 3, 2, 1}) {
    const recipe::Recipe one = make_recipe({"training.batch_size=" + std::to_string(size),
                                            "training.gradient_accumulation_steps=" + std::to_string(12 / size)});
    const recipe::Recipe settled = settle(open, model, peak_of(one));
    EXPECT_EQ(settled.training.batch_size.samples, size);
    EXPECT_EQ(settled.training.gradient_accumulation_steps, 12 / size);
  }
  EXPECT_THAT(error_text(ErrorKind::Resource, [&] { settle(open, model, 1000); }),
              HasSubstr("training.batch_size: the least that it allows needs "));
}

TEST(Settle, SpendsABudgetOnTheLeastRecomputation) {
  const auto policy = [](int64_t budget) {
    const recipe::Recipe recipe =
        make_recipe({"training.activation_checkpointing={budget: " + std::to_string(budget) + " B}"});
    return settle(recipe, recipe::resolve_model(recipe), int64_t{1} << 40).training.activation_checkpointing;
  };
  const int64_t none = peak_of(make_recipe()),
                elementwise = peak_of(make_recipe({"training.activation_checkpointing=elementwise"})),
                layers = peak_of(make_recipe({"training.activation_checkpointing={layers: 4}"}));
  ASSERT_LT(layers, elementwise);
  EXPECT_EQ(policy(none).kind, Kind::None);
  EXPECT_EQ(policy(none - 1).kind, Kind::Elementwise);
  EXPECT_EQ(policy(layers).kind, Kind::Layers);
  EXPECT_EQ(policy(layers).count, 4);
  EXPECT_THAT(error_text(ErrorKind::Resource, [&] { policy(100000); }),
              HasSubstr("training.activation_checkpointing: the least that it allows needs "));
}

TEST(RequireFit, SaysWhatIsNeededWhatIsThereAndWhatWouldFit) {
  const recipe::Recipe recipe = make_recipe();
  const recipe::ResolvedModel model = recipe::resolve_model(recipe);
  require_fit(recipe, model, peak_of(recipe));
  const std::string text = error_text(ErrorKind::Resource, [&] { require_fit(recipe, model, peak_of(recipe) - 1); });
  EXPECT_THAT(text, HasSubstr("training.batch_size: the run needs "));
  EXPECT_THAT(text, HasSubstr("are there (training.activation_checkpointing: elementwise needs "));
  EXPECT_THAT(error_text(ErrorKind::Resource, [&] { require_fit(recipe, model, 1000); }),
              HasSubstr("a machine with more memory, or a smaller model"));
}

}  // namespace
}  // namespace lathe::cost
