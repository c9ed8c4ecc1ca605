#include "lathe/train/build_optimizer.h"

#include "expect_error.h"
#include "lathe/optim/adam.h"
#include "lathe/optim/sgd.h"
#include "tensor_expect.h"

namespace lathe::train {
namespace {

using testing::ramp;

constexpr const char* kRecipe = R"(model: {path: m, task: classification}
adapter: {type: lora, rank: 4, alpha: 8}
data: {train: t.jsonl}
optimizer: {lr: 0.1}
training: {max_steps: 1, batch_size: 1}
output: {dir: out}
)";

optim::NamedTensors example_parameters() {
  return {{"layer.0.query.lora_A.weight", ramp({2, 4})},
          {"layer.0.query.lora_B.weight", ramp({4, 2})},
          {"classifier.weight", ramp({2, 4})},
          {"classifier.bias", ramp({2})}};
}

std::unique_ptr<optim::Optimizer> built(const std::vector<std::string>& overrides) {
  return build_optimizer(recipe::parse(kRecipe, "r.yaml", "/", overrides), example_parameters());
}

TEST(BuildOptimizer, ScalesTheRateOfEveryLoraB) {
  const auto optimizer = built({"optimizer.lora_plus_ratio=16"});
  EXPECT_EQ(optimizer->trained()[0].lr_factor, 1);
  EXPECT_EQ(optimizer->trained()[1].lr_factor, 16);
  EXPECT_EQ(optimizer->trained()[2].lr_factor, 1);
}

TEST(BuildOptimizer, TakesTheFirstGroupThatMatchesTheWholeName) {
  const auto optimizer = built({"optimizer.lora_plus_ratio=16",
                                "optimizer.groups=[{pattern: \"classifier.*\", lr: 0.01, weight_decay: 0.5}, "
                                "{pattern: \".*weight\", lr: 0.2}, {pattern: \".*lora_B.*\", lr: 0.3}]"});
  const auto& trained = optimizer->trained();
  EXPECT_DOUBLE_EQ(trained[0].lr_factor, 2);
  EXPECT_DOUBLE_EQ(trained[1].lr_factor, 2);  // a group decides alone
  EXPECT_DOUBLE_EQ(trained[2].lr_factor, 0.1);
  EXPECT_EQ(trained[2].weight_decay, 0.5);
  EXPECT_DOUBLE_EQ(trained[3].lr_factor, 0.1);
  EXPECT_EQ(trained[3].weight_decay, 0);  // a vector
}

TEST(BuildOptimizer, RefusesAGroupThatMatchesNothing) {
  EXPECT_EQ(testing::error_text(ErrorKind::Config, [] { built({"optimizer.groups=[{pattern: head, lr: 1}]"}); }),
            "override: optimizer.groups[0].pattern: \"head\" matches no trained parameter (a name is, for example, "
            "layer.0.query.lora_A.weight)");
}

TEST(BuildOptimizer, MakesWhatTheRecipeNames) {
  EXPECT_NE(dynamic_cast<optim::AdamW*>(built({}).get()), nullptr);
  const auto adam = built({"optimizer.type=adam"});
  EXPECT_NE(dynamic_cast<optim::Adam*>(adam.get()), nullptr);
  EXPECT_EQ(dynamic_cast<optim::AdamW*>(adam.get()), nullptr);
  const auto sgd = built({"optimizer.type=sgd", "optimizer.momentum=0.9"});
  EXPECT_NE(dynamic_cast<optim::Sgd*>(sgd.get()), nullptr);
  EXPECT_EQ(sgd->state().size(), 4);
}

}  // namespace
}  // namespace lathe::train
