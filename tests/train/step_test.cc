#include "lathe/train/step.h"

#include "lathe/train/classifier_task.h"
#include "small_bert.h"
#include "train/run_fixture.h"

namespace lathe::train {
namespace {

// Eight samples of different lengths; the model and its adapter in float64; SGD with rate 1, so that a step's change is
// the gradient itself.
class WindowTest : public RunFixture {
 protected:
  WindowTest() {
    testing::write_small_bert(directory_);
    write_eight_texts(directory_);
    directory_.write("recipe.yaml", R"(
model: {path: model, task: classification, dropout: 0}
adapter: {type: lora, rank: 2, alpha: 4, target_modules: [query, value]}
data: {train: train.jsonl, shuffle: false}
optimizer: {type: sgd, lr: 1, schedule: constant, weight_decay: 0, clip_grad_norm: 0}
training: {max_steps: 1, batch_size: 8}
output: {dir: unused}
)");
  }

  // The update of every trained parameter by one step over `window`.
  std::vector<Tensor> update(const Window& window, double* loss = nullptr) const {
    const recipe::Recipe given = recipe("unused");
    const auto task = open_classifier_task(given);
    for (auto& item : task->model().named_parameters()) {
      Tensor value = item.value().detach().to(at::kDouble);
      if (item.key().ends_with("lora_B.weight")) value = testing::ramp(value.sizes(), 0.3, 0, at::kDouble);
      item.value().set_data(value);
    }
    task->model().train();
    Stepper stepper(*task, given, 1);
    StepMetrics metrics;
    auto result = update_of_step(*task, stepper, window, metrics);
    if (loss != nullptr) *loss = metrics.loss;
    return result;
  }
};

TEST_F(WindowTest, GivesTheSameGradientForEverySplit) {
  double whole_loss = 0;
  const auto whole = update(kEightTexts, &whole_loss);
  EXPECT_GT(whole.front().abs().max().item<double>(), 1e-4) << "the gradient is not trivially zero";
  for (const Window& split : {Window{{0, 1}, {2, 3}, {4, 5}, {6, 7}}, Window{{0, 1, 2, 3, 4}, {5, 6, 7}},
                              Window{{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}}, Window{{7, 6, 5}, {}, {4, 3, 2, 1, 0}}}) {
    double loss = 0;
    EXPECT_LT(largest_difference(update(split, &loss), whole), 1e-12);
    EXPECT_NEAR(loss, whole_loss, 1e-12);
  }
}

// What many trainers do: the mean of each micro-batch's mean. With 5 and 3 samples it is another gradient.
TEST_F(WindowTest, IsNotTheMeanOfMeans) {
  const auto whole = update(kEightTexts), five = update({{0, 1, 2, 3, 4}}), three = update({{5, 6, 7}});
  std::vector<Tensor> mean_of_means, weighted;
  for (size_t i = 0; i < whole.size(); ++i) {
    mean_of_means.push_back((five[i] + three[i]) / 2);
    weighted.push_back((5 * five[i] + 3 * three[i]) / 8);
  }
  EXPECT_GT(largest_difference(mean_of_means, whole), 1e-3);
  EXPECT_LT(largest_difference(weighted, whole), 1e-12);
}

}  // namespace
}  // namespace lathe::train
