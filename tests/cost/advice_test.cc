#include "lathe/cost/advice.h"

#include <gmock/gmock.h>
#include <stdlib.h>

#include <chrono>
#include <fstream>

#include "cost/small_recipe.h"
#include "expect_error.h"
#include "lathe/cost/fit.h"
#include "lathe/cost/time.h"
#include "temporary_directory.h"

namespace lathe::cost {
namespace {

// As far as an arch may go.
constexpr const char* kAbsurd =
    "model.arch={model_type: llama, vocab_size: 16777216, hidden_size: 16777216, intermediate_size: 16777216, "
    "num_hidden_layers: 4096, num_attention_heads: 1024, max_position_embeddings: 16777216}";

constexpr int64_t kMuch = int64_t{1} << 62;

struct Planned {
  explicit Planned(const std::vector<std::string>& overrides = {})
      : recipe(recipe::parse(kSmallRecipe, "recipe.yaml", "/base", overrides, recipe::Purpose::Plan)),
        model(recipe::resolve_model(recipe)),
        settled(settle(recipe, model, kMuch)),
        plan(settled.plan) {}
  recipe::Recipe recipe;
  recipe::ResolvedModel model;
  Settled settled;
  Plan plan;

  std::vector<Change> changes() const { return possible_changes(recipe, model, settled, kMuch); }
  // As if it were settled for so much memory.
  std::optional<Change> fitting(Amount available) const {
    return fitting_change(recipe, model, static_cast<int64_t>(available));
  }
};

std::map<std::string, Plan> changes_of(const Planned& planned) {
  std::map<std::string, Plan> plans;
  for (Change& change : planned.changes()) plans.emplace(command_line_text(change.overrides), std::move(change.plan));
  return plans;
}

std::vector<std::string> overrides_of(const Planned& planned, const std::string& text) {
  for (const Change& change : planned.changes())
    if (command_line_text(change.overrides) == text) return change.overrides;
  return {};
}

// Each is the plan of the recipe under these overrides and nothing else.
TEST(PossibleChanges, ArePlansOfTheRecipeWithThatOverride) {
  const Planned now;
  const auto plans = changes_of(now);
  for (const char* knob : {"training.activation_checkpointing=elementwise", "training.activation_checkpointing=full",
                           "'training.activation_checkpointing={every: 2}'",
                           "training.batch_size=6 training.gradient_accumulation_steps=2", "quant.type=nf4",
                           "model.dtype=bfloat16", "adapter.rank=2", "adapter.rank=8", "model.max_length=16"}) {
    ASSERT_TRUE(plans.contains(knob)) << knob;
    const Planned changed(overrides_of(now, knob));
    EXPECT_EQ(plans.at(knob).memory.peak, changed.plan.memory.peak) << knob;
    EXPECT_EQ(plans.at(knob).flops.total(), changed.plan.flops.total()) << knob;
  }
  EXPECT_FALSE(plans.contains("training.activation_checkpointing=none")) << "it is so already";
  EXPECT_FALSE(plans.contains("model.dtype=float32"));
}

TEST(PossibleChanges, AreRankedByTheirPeak) {
  const Planned now;
  const auto changes = now.changes();
  EXPECT_TRUE(std::is_sorted(changes.begin(), changes.end(),
                             [](const Change& a, const Change& b) { return a.plan.memory.peak < b.plan.memory.peak; }));
  EXPECT_LT(changes.front().plan.memory.peak, now.plan.memory.peak);
}

TEST(PossibleChanges, OfARunOfAllWeightsHaveAnAdapterAndNoFourBits) {
  const auto plans = changes_of(Planned({"adapter={type: none}"}));
  EXPECT_TRUE(plans.contains("'adapter={type: lora, rank: 8, alpha: 16}'"));
  EXPECT_FALSE(plans.contains("quant.type=nf4"));
}

// The recipe with the overrides is what was promised, and they are no more than it takes.
TEST(FittingChange, IsTheFirstCombinationThatFits) {
  const Planned now({"training.batch_size=8"});
  const auto words = [&](Amount available) {
    const auto change = now.fitting(available);
    if (!change) return std::string("none");
    std::vector<std::string> overrides = {"training.batch_size=8"};
    overrides.insert(overrides.end(), change->overrides.begin(), change->overrides.end());
    EXPECT_EQ(Planned(overrides).plan.memory.peak, change->plan.memory.peak);
    EXPECT_LE(change->plan.memory.peak, available);
    return command_line_text(change->overrides);
  };
  const auto peak = [](std::vector<std::string> overrides) { return Planned(overrides).plan.memory.peak; };
  const std::string one = "training.batch_size=1 training.gradient_accumulation_steps=8";
  EXPECT_EQ(words(now.plan.memory.peak), "");
  EXPECT_EQ(words(now.plan.memory.peak - 1), "training.batch_size=4 training.gradient_accumulation_steps=2");
  const auto squeezed = [&](const std::string& more) {
    return one + " training.activation_checkpointing=full " + more;
  };
  const Amount single = peak({"training.batch_size=1", "training.gradient_accumulation_steps=8"});
  EXPECT_EQ(words(single), one);
  EXPECT_EQ(words(single - 1), one + " training.activation_checkpointing=elementwise");
  const Amount narrow = peak({"training.batch_size=1", "training.gradient_accumulation_steps=8",
                              "training.activation_checkpointing=full", "model.dtype=bfloat16"});
  EXPECT_EQ(words(narrow), squeezed("model.dtype=bfloat16"));
  EXPECT_EQ(words(narrow - 1),
            "training.batch_size=2 training.gradient_accumulation_steps=4 "
            "training.activation_checkpointing=full quant.type=nf4");
  EXPECT_EQ(words(1000), "none");
  const Planned all({"adapter={type: none}", "training.batch_size=1"});
  EXPECT_EQ(command_line_text(all.fitting(all.plan.memory.weights * 1.5)->overrides),
            "training.activation_checkpointing=full 'adapter={type: lora, rank: 8, alpha: 16}'");
}

// What is said of a change under batch_size: auto is what the recipe with that override settles to.
TEST(PossibleChanges, OfAnAutomaticBatchAreSettledAgain) {
  const std::vector<std::string> open = {"training.batch_size=auto", "training.global_batch_size=12"};
  const Planned automatic(open);
  const auto limit = static_cast<int64_t>(
      Planned({"training.batch_size=4", "training.gradient_accumulation_steps=3"}).plan.memory.peak);
  const Settled now = settle(automatic.recipe, automatic.model, limit);
  EXPECT_EQ(now.plan.batch_size, 4);
  bool larger = false;
  for (const Change& change : possible_changes(automatic.recipe, automatic.model, now, limit)) {
    std::vector<std::string> overrides = open;
    overrides.insert(overrides.end(), change.overrides.begin(), change.overrides.end());
    const Planned pasted(overrides);
    const Settled again = settle(pasted.recipe, pasted.model, limit);
    EXPECT_EQ(again.plan.memory.peak, change.plan.memory.peak) << command_line_text(change.overrides);
    EXPECT_EQ(again.fits(), change.fits) << command_line_text(change.overrides);
    larger = larger || again.plan.batch_size > 4;
  }
  EXPECT_TRUE(larger);
}

// Of what the recipe leaves open nothing is closed, and its plan is what pasting gives.
TEST(FittingChange, OfAnOpenRecipeIsSettledAgain) {
  for (const std::vector<std::string>& open :
       {std::vector<std::string>{"training.batch_size=auto", "training.global_batch_size=12"},
        {"training.batch_size=6", "training.activation_checkpointing={budget: 1 GB}"},
        {"training.batch_size=6", "training.activation_checkpointing={budget: 500 kB}"}}) {
    const Planned planned(open);
    const Settled least = settle(planned.recipe, planned.model, 1);
    const auto limit = static_cast<int64_t>(0.9 * least.plan.memory.peak);
    const auto fitting = fitting_change(planned.recipe, planned.model, limit);
    ASSERT_TRUE(fitting) << open.back();
    std::vector<std::string> overrides = open;
    overrides.insert(overrides.end(), fitting->overrides.begin(), fitting->overrides.end());
    const Planned pasted(overrides);
    const Settled again = settle(pasted.recipe, pasted.model, limit);
    EXPECT_TRUE(again.fits()) << command_line_text(fitting->overrides);
    EXPECT_EQ(again.plan.memory.peak, fitting->plan.memory.peak) << command_line_text(fitting->overrides);
    EXPECT_EQ(pasted.recipe.training.activation_checkpointing.budget_bytes,
              planned.recipe.training.activation_checkpointing.budget_bytes);
  }
}

TEST(FittingChange, HasNothingThatCouldBeSpared) {
  const std::vector<std::string> given = {"training.batch_size=1", "adapter={type: none}"};
  const Planned planned(given);
  size_t most = 0;
  for (Amount limit = planned.plan.memory.peak; limit > 0; limit *= 0.9) {
    const auto change = planned.fitting(limit);
    if (!change) break;
    most = std::max(most, change->overrides.size());
    for (size_t spared = 0; spared < change->overrides.size(); ++spared) {
      std::vector<std::string> words = given;
      for (size_t i = 0; i < change->overrides.size(); ++i)
        if (i != spared) words.push_back(change->overrides[i]);
      try {
        EXPECT_GT(Planned(words).plan.memory.peak, limit) << command_line_text(change->overrides);
      } catch (const Error&) {  // four bits and a rank need the adapter
        EXPECT_TRUE(change->overrides[spared].starts_with("adapter=")) << change->overrides[spared];
      }
    }
  }
  EXPECT_GE(most, 3U);
}

// 5e18 weights, 10^9 samples of 2^24 tokens: a right number, in bounded time.
TEST(AbsurdRecipe, HasARightBigPlan) {
  const auto start = std::chrono::steady_clock::now();
  const Planned absurd({"model.task=causal_lm", kAbsurd, "adapter={type: none}", "model.max_length=16777216",
                        "training.batch_size=1000000000", "training.gradient_accumulation_steps=1000000000"});
  const Amount h = 16777216, L = 4096, T = 1e9 * h;
  EXPECT_NEAR(absurd.plan.parameters.total() / (L * (7 * h * h + 2 * h) + 2 * h * h + h), 1, 1e-12);
  EXPECT_NEAR(absurd.plan.flops.linear / (1e9 * 6 * T * (L * 7 + 1) * h * h), 1, 1e-12);
  EXPECT_NEAR(absurd.plan.memory.activations / (T * kFloatBytes * (L * (11 * h + 1024 + 2) + 2 * h + 2)), 1, 1e-12);
  EXPECT_GT(absurd.plan.memory.peak, absurd.plan.memory.activations);
  EXPECT_EQ(largest_batch(absurd.recipe, absurd.model, 1000000000000), std::nullopt);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));  // sanitizers; without them below 2
}

// Beside 10^20 bytes of weights the activations of one sample keep their digits.
TEST(AbsurdRecipe, KeepsTheDigitsOfASmallStep) {
  const Planned absurd(
      {"model.task=causal_lm", kAbsurd, "adapter={type: none}", "model.max_length=3", "training.batch_size=1"});
  const Amount h = 16777216, L = 4096;
  EXPECT_EQ(absurd.plan.memory.activations, 3 * kFloatBytes * (L * (11 * h + 1024 + 2) + 2 * h + 2));
}

// A dense model of 10^12 weights, counted to the last one.
TEST(AbsurdRecipe, CountsATrillionWeights) {
  const Planned trillion(
      {"model.task=causal_lm", "adapter.target_modules=all-linear", "quant.type=nf4", "training.batch_size=1",
       "model.arch={model_type: llama, vocab_size: 128000, hidden_size: 32768, intermediate_size: 90112, "
       "num_hidden_layers: 76, num_attention_heads: 256, num_key_value_heads: 32}"});
  const Amount h = 32768, layer = 2.25 * h * h + 3 * h * 90112 + 2 * h;
  EXPECT_EQ(trillion.plan.parameters.base, 76 * layer + 2 * 128000 * h + h);
  EXPECT_GT(trillion.plan.parameters.base, 8.6e11);
  const Amount matrices = 76 * (layer - 2 * h), others = 2 * 128000 * h + (2 * 76 + 1) * h;
  EXPECT_EQ(trillion.plan.memory.weights,
            0.5625 * matrices + 76 * 7 * 64 + (others + trillion.plan.parameters.adapter) * kFloatBytes);
}

TEST(AbsurdRecipe, IsRefusedByALineWhereItHasNoMeaning) {
  const auto refusal = [](const char* override_text) {
    return testing::error_text(ErrorKind::Config, [&] { Planned({override_text}); });
  };
  EXPECT_THAT(refusal("adapter.rank=0"),
              ::testing::HasSubstr("adapter.rank: expected an integer in [1, 65536], got 0"));
  EXPECT_THAT(refusal("adapter.rank=1000000000000"), ::testing::HasSubstr("adapter.rank: expected an integer"));
  EXPECT_THAT(refusal("model.max_length=-7"),
              ::testing::HasSubstr("model.max_length: expected an integer >= 3, got -7"));
  EXPECT_THAT(refusal("training.batch_size=99999999999999999999"),
              ::testing::HasSubstr("training.batch_size: expected"));
  EXPECT_THAT(refusal("training.gradient_accumulation_steps=-1"), ::testing::HasSubstr("gradient_accumulation_steps"));
  EXPECT_THAT(refusal("model.arch.hidden_size=1000000000"),
              ::testing::HasSubstr("hidden_size: expected an integer from 1 to 16777216, got 1000000000"));
  EXPECT_THAT(refusal("model.arch.num_hidden_layers=1000000000"),
              ::testing::HasSubstr("num_hidden_layers: expected an integer from 1 to 4096, got 1000000000"));
}

// 1344 divisors and 63 policies for each are searched by halving.
TEST(AbsurdRecipe, IsSettledInBoundedTime) {
  const recipe::Recipe open =
      recipe::parse(kSmallRecipe, "recipe.yaml", "/base",
                    {"~training.batch_size", "training.batch_size=auto", "training.global_batch_size=735134400",
                     "model.arch.num_hidden_layers=64", "training.activation_checkpointing={budget: 1 TB}"});
  const recipe::ResolvedModel model = recipe::resolve_model(open);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_LE(settle(open, model, int64_t{1} << 40).plan.memory.peak, 1e12);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));  // sanitizers; without them below 5
}

TEST(EstimateSeconds, AddsProductsAndMemory) {
  const Planned now;
  const MachineSpeed speed{{1e9, 1e8}, {3e9, 2e8}, 5};
  const auto seconds = [&](double flops, double bytes) {
    return now.plan.flops.total() / flops + now.plan.moved_bytes / bytes;
  };
  EXPECT_EQ(estimate_seconds(now.plan, std::nullopt), std::nullopt);
  EXPECT_DOUBLE_EQ(estimate_seconds(now.plan, speed).value(), seconds(3e9, 2e8));
  EXPECT_DOUBLE_EQ(estimate_seconds(Planned({"training.threads=1"}).plan, speed).value(), seconds(1e9, 1e8));
  EXPECT_DOUBLE_EQ(estimate_seconds(Planned({"training.threads=2"}).plan, speed).value(), seconds(1.5e9, 1.25e8));
}

TEST(MeasuredSpeed, IsWhatDoctorLeftInTheCache) {
  const testing::TemporaryDirectory directory;
  ::setenv("LATHE_CACHE", directory.path().c_str(), 1);
  EXPECT_FALSE(measured_speed());
  directory.write("machine.json", R"({"gemm_flops": 2e11, "memory_bytes_per_second": 1e10, "threads": 2,
                  "gemm_flops_of_one_thread": 1e11, "memory_bytes_per_second_of_one_thread": 9e9, "process_base_bytes": 7})");
  EXPECT_EQ(measured_speed()->all_threads.gemm_flops, 2e11);
  EXPECT_EQ(measured_speed()->one_thread.memory_bytes_per_second, 9e9);
  EXPECT_EQ(measured_speed()->threads, 2);
  directory.write("machine.json", "half a fi");
  EXPECT_FALSE(measured_speed());
  ::unsetenv("LATHE_CACHE");
}

}  // namespace
}  // namespace lathe::cost
