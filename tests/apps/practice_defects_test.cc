#include <gmock/gmock.h>

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include "lathe/optim/sgd.h"
#include "practice/accumulation.h"
#include "practice/lora_defects.h"

namespace lathe::app::practice {
namespace {

using ::testing::ElementsAre;

// The loop over four batches whose gradients are 1, 2, 3 and 4, twice.
struct LoopTrace {
  std::vector<double> gradients;  // before each step
  double weight = 0, left = 0;    // at the end

  explicit LoopTrace(Filling filling, int64_t num_batches = 4) {
    const Tensor w = at::zeros({1}, at::kDouble).requires_grad_();
    optim::Sgd optimizer(optim::with_weight_decay({{"w", w}}, 0));
    ExamLoop loop{.model = [&](const Tensor& x) { return x * w; },
                  .loader = {},
                  .criterion = [](const Tensor& outputs, const Tensor&) { return outputs.mean(); },
                  .optimizer = optimizer,
                  .lr = 1};
    for (int64_t i = 0; i < num_batches; ++i)
      loop.loader.push_back({at::full({2}, static_cast<double>(i % 4 + 1), at::kDouble), {}});
    loop.before_step = [&] { gradients.push_back(w.grad().item<double>()); };
    loop.run(filling);
    weight = w.item<double>();
    left = w.grad().defined() ? w.grad().item<double>() : 0;
  }
};

TEST(ExamLoop, ShowsTheStatementsThatItRuns) {
  EXPECT_EQ(filling_code(Filling::Undivided),
            "loss.backward();\n"
            "if ((batch_idx + 1) % accumulation_steps == 0) {\n"
            "    optimizer.step();\n"
            "    optimizer.zero_grad();\n"
            "}\n");
}

TEST(ExamLoop, MendedStepsOnceWithTheMeanOfTheWindow) {
  const LoopTrace trace(Filling::Mended);
  EXPECT_THAT(trace.gradients, ElementsAre(2.5));
  EXPECT_EQ(trace.weight, -2.5);
  EXPECT_EQ(trace.left, 0);
}

TEST(ExamLoop, WithoutTheDivisionTheGradientIsFourTimesTooLarge) {
  EXPECT_THAT(LoopTrace(Filling::Undivided).gradients, ElementsAre(10));
}

TEST(ExamLoop, ZeroGradBeforeEachBackwardLeavesTheLastMicroBatch) {
  EXPECT_THAT(LoopTrace(Filling::ZeroFirst).gradients, ElementsAre(1));
}

TEST(ExamLoop, AStepAfterEveryMicroBatchIsFourSmallSteps) {
  EXPECT_THAT(LoopTrace(Filling::StepAlways).gradients, ElementsAre(0.25, 0.5, 0.75, 1));
}

TEST(ExamLoop, WithoutZeroGradTheWindowsAddUp) {
  EXPECT_THAT(LoopTrace(Filling::NeverZero, 8).gradients, ElementsAre(2.5, 5));
}

TEST(ExamLoop, EvenMendedForgetsAPartialWindow) {
  const LoopTrace trace(Filling::Mended, 6);
  EXPECT_THAT(trace.gradients, ElementsAre(2.5));
  EXPECT_EQ(trace.left, 0.75);
}

TEST(ExamLoRA, ShowsTheStatementsThatItRuns) {
  EXPECT_EQ(lora_code({.random_b = true, .trains_base = true}),
            "ExamLoRA(base_layer, rank, alpha) {\n"
            "    A = draw.uniform({in_features, rank}, 1 / std::sqrt(in_features));\n"
            "    B = draw.normal({rank, out_features}) * 0.02;\n"
            "}\n"
            "forward(x) {\n"
            "    return base_layer->forward(x) + x.matmul(A).matmul(B) * (alpha / rank);\n"
            "}\n");
}

struct NamedDefects {
  const char* name;
  LoraCase which;
};

class ExamLoRASymptoms : public ::testing::TestWithParam<NamedDefects> {};

// Each defect has its own symptom and none of the others'; the library's layer has none.
TEST_P(ExamLoRASymptoms, AreTheDefectsOwn) {
  const LoraCase& which = GetParam().which;
  const LoraDefects& defects = which.defects;
  EXPECT_EQ(shift_at_start(which) > 0, defects.random_b);
  EXPECT_EQ(trainable_parameters(which), 4 * (256 + 64) + (defects.trains_base ? 256 * 64 : 0));
  EXPECT_EQ(train_lora(which, 3).base_moved, defects.trains_base);
  if (defects.trains_base || defects.random_b) return;  // they take part in the first step
  const auto change = [&](int64_t rank, double alpha, int64_t width) {
    LoraCase other = which;
    other.rank = rank;
    other.alpha = alpha;
    other.width = width;
    return first_step_change(other);
  };
  const double usual = change(4, 1, 64);
  EXPECT_EQ(change(4, 16, 64) == usual, defects.unscaled);
  // 48 samples of four terms or more: the ratios scatter by some percent.
  EXPECT_NEAR(change(64, 1, 64) / usual, defects.unscaled ? 16 : 1, defects.unscaled ? 2.4 : 0.15);
  EXPECT_NEAR(change(4, 1, 1024) / usual, defects.constant_scale ? 4 : 1, defects.constant_scale ? 0.6 : 0.15);
}

INSTANTIATE_TEST_SUITE_P(Layer, ExamLoRASymptoms,
                         ::testing::Values(NamedDefects{"library", {.library = true}}, NamedDefects{"mended", {}},
                                           NamedDefects{"random_b", {.defects = {.random_b = true}}},
                                           NamedDefects{"unscaled", {.defects = {.unscaled = true}}},
                                           NamedDefects{"trains_base", {.defects = {.trains_base = true}}},
                                           NamedDefects{"constant_scale", {.defects = {.constant_scale = true}}},
                                           NamedDefects{"all", {.defects = LoraDefects::all()}}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace lathe::app::practice
