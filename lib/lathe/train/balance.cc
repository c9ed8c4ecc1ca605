#include "lathe/train/balance.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <numeric>
#include <utility>

#include "lathe/models/load.h"

namespace lathe::train {
namespace {

constexpr double kCollapsedEntropy = 0.5;
constexpr double kAssignmentsPerExpert = 4;
constexpr int64_t kCollapsedInARow = 10;

std::string collapse_text(size_t layer, const nn::LoadFigures& figures, int64_t num_experts) {
  std::array<char, 32> entropy{};
  std::snprintf(entropy.data(), entropy.size(), "%.2f", figures.entropy);
  return "routing collapses in expert layer " + std::to_string(layer) + ": " + std::to_string(figures.num_dead) +
         " of " + std::to_string(num_experts) + " experts are dead, entropy " + entropy.data() +
         "; raise model.moe.aux_loss_weight, or set model.moe.bias_update_rate (0.001 to 0.01)";
}

}  // namespace

Json BalanceMetrics::to_json() const {
  const double sum = std::accumulate(dropped.begin(), dropped.end(), 0.0);
  const double mean = dropped.empty() ? 0 : sum / static_cast<double>(dropped.size());
  return {{"moe_loss", loss}, {"moe_entropy", entropy}, {"moe_max_vio", max_vio},
          {"moe_dead", dead}, {"moe_dropped", mean},    {"moe_load", load}};
}

bool Balance::has_losses() const {
  return std::any_of(layers_.begin(), layers_.end(),
                     [](const auto& layer) { return layer->options.balance().has_losses(); });
}

void Balance::stop_counting() {
  for (const auto& layer : layers_) layer->set_counting(false);
}

at::Tensor Balance::loss() const {
  at::Tensor sum;
  for (const auto& layer : layers_) {
    if (!layer->options.balance().has_losses()) continue;
    sum = sum.defined() ? sum + layer->window_loss() : layer->window_loss();
  }
  return sum;
}

BalanceMetrics Balance::metrics() const {
  const at::NoGradGuard no_grad;
  BalanceMetrics metrics;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const auto& layer = layers_[i];
    const nn::BalanceSums& window = layer->window();
    if (!window.load_E.defined()) continue;  // every micro-batch was without items
    const nn::LoadFigures figures = nn::load_figures(window);
    metrics.loss += nn::balance_loss(window, layer->options.balance()).item<double>();
    if (figures.entropy <= metrics.entropy) {
      metrics.entropy = figures.entropy;
      metrics.max_vio = figures.max_vio;
    }
    metrics.dead += figures.num_dead;
    metrics.dropped.push_back(figures.dropped);
    const int64_t num_experts = window.load_E.numel();
    const double total = window.load_E.sum().item<double>();
    const bool collapsed = figures.entropy < kCollapsedEntropy || 2 * figures.num_dead >= num_experts;
    if (num_experts > 1 && total >= kAssignmentsPerExpert * static_cast<double>(num_experts) && collapsed &&
        metrics.collapse.empty())
      metrics.collapse = collapse_text(i, figures, num_experts);
    const at::Tensor shares = window.load_E / total;
    metrics.load.emplace_back(shares.const_data_ptr<double>(), shares.const_data_ptr<double>() + shares.numel());
  }
  return metrics;
}

void Balance::end_window() {
  const at::NoGradGuard no_grad;
  for (const auto& layer : layers_) layer->end_window();
}

void Balance::forget_window() {
  for (const auto& layer : layers_) layer->forget_window();
}

std::string CollapseWatch::see(int64_t step, const BalanceMetrics& metrics) {
  in_a_row_ = metrics.collapse.empty() ? 0 : in_a_row_ + 1;
  if (in_a_row_ < kCollapsedInARow || std::exchange(warned_, true)) return "";
  return "step " + std::to_string(step) + ": " + metrics.collapse;
}

optim::NamedTensors with_selection_biases(optim::NamedTensors parameters, const torch::nn::Module& model) {
  for (auto& bias : models::selection_biases(model)) parameters.push_back(std::move(bias));
  return parameters;
}

}  // namespace lathe::train
