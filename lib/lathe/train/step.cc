#include "lathe/train/step.h"

#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include <chrono>
#include <cmath>

#include "lathe/base/memory.h"
#include "lathe/base/random.h"
#include "lathe/nn/watch.h"
#include "lathe/train/build_optimizer.h"
#include "lathe/train/signals.h"

namespace lathe::train {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

nn::LayerPolicy layer_policy(const recipe::Checkpointing& checkpointing) {
  using Kind = recipe::Checkpointing::Kind;
  switch (checkpointing.kind) {
    case Kind::Elementwise:
      return {nn::Recompute::Elementwise};
    case Kind::Full:
      return {nn::Recompute::Full};
    case Kind::Every:
      return {nn::Recompute::Full, checkpointing.count};
    case Kind::Layers:
      return {nn::Recompute::Full, 1, checkpointing.count};
    default:
      return {};
  }
}

int64_t count_items(const Task& task, const Window& window) {
  int64_t items = 0;
  for (const auto& samples : window) items += task.num_items(samples);
  return items;
}

bool is_finite(const at::Tensor& tensor) { return tensor.isfinite().all().item<bool>(); }

}  // namespace

Stepper::Stepper(Task& task, const recipe::Recipe& recipe, int64_t num_steps)
    : task_(task),
      seed_(static_cast<uint64_t>(recipe.training.seed)),
      lr_(recipe.optimizer.lr),
      clip_grad_norm_(recipe.optimizer.clip_grad_norm),
      layers_(layer_policy(recipe.training.activation_checkpointing)),
      schedule_(build_schedule(recipe.optimizer, num_steps)),
      optimizer_(build_optimizer(recipe, task.trained_parameters())),
      balance_(task.model()) {}

uint64_t Stepper::pass_key(int64_t step, size_t index) const {
  return make_key(seed_, name_key("dropout"), step, index);
}

nn::Pass Stepper::pass_of(int64_t step, size_t index) const {
  return {.training = true, .key = pass_key(step, index), .layers = layers_};
}

// The sums of the whole window, under the dropouts of its training passes.
void Stepper::look_ahead(int64_t step, const Window& window) {
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < window.size(); ++i) {
    if (task_.num_items(window[i]) == 0) continue;
    const nn::Pass pass = pass_of(step, i);
    const nn::DropoutStream adapter_dropouts(make_key(pass.key, name_key("adapters")));
    task_.loss(window[i], pass);
  }
  balance_.stop_counting();
}

void Stepper::announce(int64_t step, const Window& window) {
  for (size_t i = 0; i < window.size(); ++i) task_.announce(window[i], pass_key(step, i));
}

Task::BatchLoss Stepper::add_micro_batch(int64_t step, size_t index, const std::vector<int64_t>& samples,
                                         int64_t items) {
  const nn::Pass pass = pass_of(step, index);
  const nn::DropoutStream adapter_dropouts(make_key(pass.key, name_key("adapters")));
  Task::BatchLoss batch;
  at::Tensor objective;
  {
    RECORD_USER_SCOPE("forward");
    batch = task_.loss(samples, pass);
    objective = batch.sum = batch.sum * (1 / static_cast<double>(items));
    if (const at::Tensor balance = balance_.loss(); balance.defined()) objective = objective + balance;
  }
  RECORD_USER_SCOPE("backward");
  objective.backward();
  return batch;
}

StepOutcome Stepper::run(int64_t step, const Window& window, StepMetrics& metrics) {
  const auto start = std::chrono::steady_clock::now();
  const int64_t items = count_items(task_, window);
  metrics.step = step + 1;
  metrics.lr = lr_ * schedule_.factor(step);
  if (balance_.has_losses() && window.size() > 1) look_ahead(step, window);
  for (size_t i = 0; i < window.size(); ++i) {
    if (stop_requested()) {
      optimizer_->zero_grad();
      balance_.forget_window();
      return StepOutcome::Stopped;
    }
    if (task_.num_items(window[i]) == 0) continue;
    const Task::BatchLoss batch = add_micro_batch(step, i, window[i], items);
    metrics.loss += batch.sum.item<double>();
    metrics.tokens += batch.tokens;
  }
  RECORD_USER_SCOPE("update");
  const optim::GradientNorm norm = optim::clip_gradients(optimizer_->trained(), clip_grad_norm_);
  metrics.grad_norm = norm.norm;
  const bool finite = std::isfinite(metrics.loss) && norm.finite;
  if (!balance_.empty()) metrics.balance = balance_.metrics();
  if (!finite) balance_.forget_window();
  if (finite) {
    without_gradient_.clear();
    for (const optim::Trained& item : optimizer_->trained()) {
      if (!item.parameter.grad().defined()) without_gradient_.push_back(item.name);
    }
    optimizer_->step(metrics.lr);
    balance_.end_window();
  }
  optimizer_->zero_grad();
  metrics.seconds = seconds_since(start);
  metrics.peak_rss_bytes = peak_resident_memory_bytes();
  return finite ? StepOutcome::Done : StepOutcome::NonFinite;
}

std::string Stepper::find_nonfinite(int64_t step, const Window& window) {
  for (const auto& [name, parameter] : task_.trained_parameters()) {
    if (!is_finite(parameter)) return "parameter " + name;
  }
  std::string found;
  const nn::ActivationWatch watch([&](const std::string& layer, const at::Tensor& output) {
    if (found.empty() && !is_finite(output.detach())) found = layer;
  });
  const int64_t items = count_items(task_, window);
  for (size_t i = 0; i < window.size() && found.empty(); ++i) {
    const Task::BatchLoss batch = add_micro_batch(step, i, window[i], items);
    if (found.empty() && !std::isfinite(batch.sum.item<double>())) found = "loss of micro-batch " + std::to_string(i);
  }
  for (const optim::Trained& item : optimizer_->trained()) {
    if (found.empty() && item.parameter.grad().defined() && !is_finite(item.parameter.grad()))
      found = "gradient of " + item.name;
  }
  optimizer_->zero_grad();
  balance_.forget_window();
  return found;
}

}  // namespace lathe::train
