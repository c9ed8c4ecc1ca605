#include "practice/training_bytes.h"

#include <ATen/ops/zeros.h>

#include <numeric>

#include "lathe/adapters/lora.h"
#include "lathe/cost/parameters.h"
#include "lathe/cost/plan.h"
#include "lathe/nn/modules.h"
#include "lathe/train/classifier.h"
#include "lathe/train/step.h"
#include "practice/measure.h"

namespace lathe::app::practice {
namespace {

constexpr const char* kRecipe = R"(
model: {task: classification, init: random, arch: {model_type: mixer, image_size: 32, patch_size: 8, num_blocks: 2, hidden_size: 64}}
adapter: {type: none}
data: {train: none.idx}
optimizer: {lr: 0.001}
training: {max_steps: 2, batch_size: 1, gradient_accumulation_steps: 2}
output: {dir: none}
)";

// The model of the recipe over black pictures; looks at the allocator before each loss.
class CountedTask : public train::Task {
 public:
  CountedTask(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved)
      : labels_(2), model_(train::build_skeleton(resolved.config.arch, 2)) {
    train::prepare_model(*model_, recipe, resolved, 2);
    model_->train();
  }

  torch::nn::Module& model() override { return *model_; }
  optim::NamedTensors trained_parameters() override { return adapters::trainable_parameters(*model_); }
  int64_t num_samples() const override { return 1; }
  std::map<std::string, uint64_t> fingerprints() const override { return {}; }
  int64_t num_items(const std::vector<int64_t>& samples) const override { return static_cast<int64_t>(samples.size()); }
  BatchLoss loss(const std::vector<int64_t>& samples, const nn::Pass& pass) override {
    const std::vector<int64_t> blocks = meter_.blocks();
    bytes_before_loss = std::accumulate(blocks.begin(), blocks.end(), int64_t{0}, [](int64_t sum, int64_t bytes) {
      return bytes > static_cast<int64_t>(sizeof(float)) ? sum + bytes : sum;
    });
    const auto count = static_cast<int64_t>(samples.size());
    const Tensor logits = dynamic_cast<models::ImageClassifier&>(*model_).forward(at::zeros({count, 3, 32, 32}), pass);
    return {nn::cross_entropy_sum(logits, at::zeros({count}, at::kLong)), count};
  }
  Json describe(const std::vector<int64_t>&) const override { return {}; }
  bool has_evaluation() const override { return false; }
  train::Evaluation evaluate(const std::function<bool()>&) override { return {}; }
  const std::vector<std::string>& labels() const override { return labels_; }
  Json show(int64_t) const override { return {}; }
  std::vector<Result> results() override { return {}; }

  int64_t bytes_before_loss = 0;  ///< single numbers aside

 private:
  const ByteMeter meter_;  // before the model
  std::vector<std::string> labels_;
  std::shared_ptr<nn::SlottedModule> model_;
};

}  // namespace

TrainingBytes training_bytes(const std::string& dtype) {
  recipe::Recipe recipe = recipe::parse(kRecipe, "recipe.yaml", ".", {"model.dtype=" + dtype});
  recipe.model.task = recipe::Task::ImageClassification;
  const recipe::ResolvedModel resolved = recipe::resolve_model(recipe);
  const cost::Plan plan = cost::make_plan(recipe, resolved);
  CountedTask task(recipe, resolved);
  train::Stepper stepper(task, recipe, /*num_steps=*/2);
  train::StepMetrics metrics;
  for (int64_t step = 0; step < 2; ++step) stepper.run(step, {{0}, {0}}, metrics);
  return {cost::count_parameters(resolved.config.arch).total,
          plan.memory.weights + plan.memory.gradients + plan.memory.optimizer,
          static_cast<cost::Amount>(task.bytes_before_loss)};
}

}  // namespace lathe::app::practice
