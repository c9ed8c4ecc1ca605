#include "lathe/optim/adamw.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "lathe/base/error.h"

namespace lathe::optim {

void Optimizer::zero_grad() {
  for (const auto& [name, parameter] : parameters_) parameter.mutable_grad().reset();
}

AdamW::AdamW(NamedTensors parameters, AdamWOptions options) : Optimizer(std::move(parameters)), options_(options) {
  for (const auto& [name, parameter] : this->parameters()) {
    exp_avgs_.push_back(at::zeros_like(parameter).detach());
    exp_avg_sqs_.push_back(at::zeros_like(parameter).detach());
    steps_.push_back(at::zeros({}, at::kFloat));
  }
}

void AdamW::step(double lr) {
  const at::NoGradGuard no_grad;
  for (const bool decayed : {true, false}) {
    std::vector<Tensor> updated, grads, exp_avgs, exp_avg_sqs, steps;
    for (size_t i = 0; i < parameters().size(); ++i) {
      const Tensor& parameter = parameters()[i].second;
      if (!parameter.grad().defined() || (parameter.dim() >= 2) != decayed) continue;
      updated.push_back(parameter);
      grads.push_back(parameter.grad());
      exp_avgs.push_back(exp_avgs_[i]);
      exp_avg_sqs.push_back(exp_avg_sqs_[i]);
      steps.push_back(steps_[i]);
    }
    if (updated.empty()) continue;
    at::_foreach_add_(steps, 1);
    at::_fused_adamw_(updated, grads, exp_avgs, exp_avg_sqs, {}, steps, lr, options_.beta1, options_.beta2,
                      decayed ? options_.weight_decay : 0, options_.eps, /*amsgrad=*/false, /*maximize=*/false);
  }
}

NamedTensors AdamW::state() const {
  NamedTensors state;
  for (size_t i = 0; i < parameters().size(); ++i) {
    const std::string& name = parameters()[i].first;
    state.insert(
        state.end(),
        {{name + ".exp_avg", exp_avgs_[i]}, {name + ".exp_avg_sq", exp_avg_sqs_[i]}, {name + ".step", steps_[i]}});
  }
  return state;
}

void AdamW::restore_state(const NamedTensors& restored, const std::string& file) {
  const at::NoGradGuard no_grad;
  const NamedTensors own = state();
  if (restored.size() != own.size()) {
    throw data_error(file,
                     Diagnostic::expected(std::to_string(own.size()) + " tensors", std::to_string(restored.size())));
  }
  for (const auto& [name, tensor] : own) {
    const auto found =
        std::find_if(restored.begin(), restored.end(), [&name = name](const auto& item) { return item.first == name; });
    if (found == restored.end()) throw data_error_in(file, name, "is missing");
    if (found->second.sizes() != tensor.sizes())
      throw data_error_in(file, name, "has another shape than the parameter");
    tensor.copy_(found->second);
  }
}

GradientNorm clip_gradients(const NamedTensors& parameters, double max_norm) {
  const at::NoGradGuard no_grad;
  double sum_of_squares = 0;
  for (const auto& [name, parameter] : parameters) {
    if (parameter.grad().defined()) sum_of_squares += parameter.grad().to(at::kDouble).square().sum().item<double>();
  }
  const GradientNorm result{std::sqrt(sum_of_squares), std::isfinite(sum_of_squares)};
  const double scale = max_norm / (result.norm + 1e-6);
  if (!result.finite || max_norm == 0 || scale >= 1) return result;
  for (const auto& [name, parameter] : parameters) {
    if (parameter.grad().defined()) parameter.grad().mul_(scale);
  }
  return result;
}

}  // namespace lathe::optim
