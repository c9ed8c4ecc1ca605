#include "practice/reference.h"

#include <ATen/ops/log_softmax.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

namespace lathe::app::practice {
namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kAdamEps = 1e-8;

}  // namespace

Tensor ReferenceLayer::forward(const Tensor& x) const {
  const Tensor seen = rounds_base ? w.to(at::kFloat).to(at::kBFloat16).to(at::kDouble) : w;
  const Tensor y = x.matmul(seen.t());
  return a.defined() ? y + x.matmul(a.t()).matmul(b.t()) * scaling : y;
}

void ReferenceLayer::step(const Tensor& x, const Tensor& g, double lr) {
  std::vector<Tensor*> parameters;
  gradients.clear();
  if (a.defined()) {
    gradients.push_back(g.matmul(b).t().matmul(x) * scaling);
    gradients.push_back(g.t().matmul(x.matmul(a.t())) * scaling);
    parameters = {&a, &b};
  }
  if (trains_base) {
    gradients.push_back(g.t().matmul(x));
    parameters.push_back(&w);
  }
  ++num_steps;
  if (moments.empty()) {
    for (const Tensor& d : gradients) moments.push_back({at::zeros_like(d), at::zeros_like(d)});
  }
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Tensor& d = gradients[i];
    Moments& m = moments[i];
    m.mean = kBeta1 * m.mean + (1 - kBeta1) * d;
    m.square = kBeta2 * m.square + (1 - kBeta2) * d.square();
    const auto t = static_cast<double>(num_steps);
    const Tensor mean = m.mean / (1 - std::pow(kBeta1, t)), square = m.square / (1 - std::pow(kBeta2, t));
    *parameters[i] = *parameters[i] - lr * mean / (square.sqrt() + kAdamEps);
  }
}

OutputLoss mean_square_to(const Tensor& target) {
  return [target](const Tensor& y) {
    const Tensor off = y - target;
    return std::pair(off.square().mean().item<double>(), off * (2.0 / static_cast<double>(off.numel())));
  };
}

OutputLoss mean_cross_entropy_of(const Tensor& labels) {
  return [labels](const Tensor& y) {
    const Tensor chosen = at::one_hot(labels, y.size(1)).to(at::kDouble), log_p = at::log_softmax(y, 1);
    const auto count = static_cast<double>(y.size(0));
    return std::pair(-(chosen * log_p).sum().item<double>() / count, (log_p.exp() - chosen) / count);
  };
}

double training_rounding(int64_t num_steps, double mean_square) {
  return 2 * static_cast<double>(num_steps) * 0x1p-24 / std::sqrt(mean_square);
}

std::vector<double> train_reference(ReferenceLayer& layer, const Tensor& x, const OutputLoss& loss, double lr,
                                    int64_t num_steps) {
  std::vector<double> losses;
  for (int64_t step = 0; step < num_steps; ++step) {
    const auto [value, g] = loss(layer.forward(x));
    losses.push_back(value);
    layer.step(x, g, lr);
  }
  return losses;
}

}  // namespace lathe::app::practice
