#include "lathe/cost/fit.h"

#include <gmock/gmock.h>

#include "cost/small_recipe.h"
#include "expect_error.h"

namespace lathe::cost {
namespace {

using testing::error_text;
using ::testing::HasSubstr;
using Kind = recipe::Checkpointing::Kind;

int64_t peak_of(const recipe::Recipe& recipe) {
  return static_cast<int64_t>(make_plan(recipe, recipe::resolve_model(recipe)).memory.peak);
}

TEST(LargestBatch, FitsAndTheNextOneDoesNot) {
  const recipe::Recipe now = small_recipe();
  const recipe::ResolvedModel model = recipe::resolve_model(now);
  const auto peak = [](int64_t size) { return peak_of(small_recipe({"training.batch_size=" + std::to_string(size)})); };
  for (const int64_t size : {1, 2, 3, 17, 500}) {
    EXPECT_EQ(largest_batch(now, model, peak(size)), size);
    EXPECT_EQ(largest_batch(now, model, peak(size + 1) - 1), size);
  }
  EXPECT_EQ(largest_batch(now, model, peak(1) - 1), std::nullopt);
  EXPECT_EQ(largest_batch(now, model, int64_t{1} << 62), 1000000000);
}

TEST(Settle, TakesTheLargestDivisorThatFits) {
  const recipe::Recipe open = small_recipe({"training.batch_size=auto", "training.global_batch_size=12"});
  const recipe::ResolvedModel model = recipe::resolve_model(open);
  for (const int64_t size : {12, 6, 4, 3, 2, 1}) {
    const recipe::Recipe one = small_recipe({"training.batch_size=" + std::to_string(size),
                                             "training.gradient_accumulation_steps=" + std::to_string(12 / size)});
    const recipe::Recipe settled = settle(open, model, peak_of(one)).recipe;
    EXPECT_EQ(settled.training.batch_size.samples, size);
    EXPECT_EQ(settled.training.gradient_accumulation_steps, 12 / size);
  }
  EXPECT_THAT(error_text(ErrorKind::Resource, [&] { require_fit(open, model, 1000); }),
              HasSubstr("training.batch_size: the least that it allows needs "));
}

TEST(Settle, SpendsABudgetOnTheLeastRecomputation) {
  const auto policy = [](int64_t budget) {
    const recipe::Recipe recipe =
        small_recipe({"training.activation_checkpointing={budget: " + std::to_string(budget) + " B}"});
    return settle(recipe, recipe::resolve_model(recipe), int64_t{1} << 40).recipe.training.activation_checkpointing;
  };
  const int64_t none = peak_of(small_recipe()),
                elementwise = peak_of(small_recipe({"training.activation_checkpointing=elementwise"})),
                layers = peak_of(small_recipe({"training.activation_checkpointing={layers: 4}"}));
  ASSERT_LT(layers, elementwise);
  EXPECT_EQ(policy(none).kind, Kind::None);
  EXPECT_EQ(policy(none - 1).kind, Kind::Elementwise);
  EXPECT_EQ(policy(layers).kind, Kind::Layers);
  EXPECT_EQ(policy(layers).count, 4);
  const recipe::Recipe tight = small_recipe({"training.activation_checkpointing={budget: 100000 B}"});
  const std::string text =
      error_text(ErrorKind::Resource, [&] { require_fit(tight, recipe::resolve_model(tight), int64_t{1} << 40); });
  EXPECT_THAT(text, HasSubstr("training.activation_checkpointing: the least that it allows needs "));
  EXPECT_THAT(text, HasSubstr("the budget is 97.7 KiB (a larger budget, or a smaller model)"));
}

TEST(RequireFit, SaysWhatIsNeededWhatIsThereAndWhatWouldFit) {
  const recipe::Recipe recipe = small_recipe();
  const recipe::ResolvedModel model = recipe::resolve_model(recipe);
  require_fit(recipe, model, peak_of(recipe));
  const std::string text = error_text(ErrorKind::Resource, [&] { require_fit(recipe, model, peak_of(recipe) - 1); });
  EXPECT_THAT(text, HasSubstr("training.batch_size: the run needs "));
  EXPECT_THAT(text, HasSubstr("are there (training.batch_size=6 training.gradient_accumulation_steps=2 needs "));
  EXPECT_THAT(error_text(ErrorKind::Resource, [&] { require_fit(recipe, model, 1000); }),
              HasSubstr("a machine with more memory, or a smaller model"));
}

}  // namespace
}  // namespace lathe::cost
