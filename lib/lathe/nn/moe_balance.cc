#include "lathe/nn/moe_balance.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/zeros.h>

#include <cmath>

namespace lathe::nn {
namespace {

const at::TensorOptions kSums = at::TensorOptions().dtype(at::kDouble);

void add_value(Tensor& sum, const Tensor& part) {
  if (!part.defined()) return;
  sum = sum.defined() ? sum + part.detach() : part.detach();
}

Tensor with_gradient(const Tensor& sum, const Tensor& part) {
  return part.defined() ? sum + (part - part.detach()) : sum;
}

}  // namespace

BalanceSums BalanceSums::of(const Routing& routing, const Routing& kept, const BalanceOptions& options) {
  BalanceSums sums;
  sums.num_tokens = routing.num_tokens;
  sums.num_dropped = routing.expert_A.numel() - kept.expert_A.numel();
  const Tensor uses_T = at::bincount(kept.token_A, {}, routing.num_tokens);
  sums.num_unserved = routing.num_tokens == 0 ? 0 : (uses_T == 0).sum().item<int64_t>();
  sums.load_E = at::bincount(routing.expert_A, {}, routing.num_experts).to(at::kDouble);
  const auto of_term = [](double weight, const auto& sum) {
    const at::AutoGradMode mode(weight != 0 && at::GradMode::is_enabled());
    return sum();
  };
  sums.importance_E = of_term(options.importance_loss_weight, [&] {
    return at::zeros({routing.num_experts}, kSums).index_add(0, routing.expert_A, routing.gate_A.to(at::kDouble));
  });
  if (routing.scores_TE.defined())
    sums.score_E = of_term(options.aux_loss_weight, [&] { return routing.scores_TE.to(at::kDouble).sum(0); });
  if (routing.load_TE.defined())
    sums.soft_load_E = of_term(options.load_loss_weight, [&] { return routing.load_TE.to(at::kDouble).sum(0); });
  if (routing.logits_TE.defined())
    sums.squared_lse = of_term(options.z_loss_weight,
                               [&] { return at::logsumexp(routing.logits_TE.to(at::kDouble), 1).square().sum(); });
  return sums;
}

void BalanceSums::add(const BalanceSums& part) {
  num_tokens += part.num_tokens;
  num_dropped += part.num_dropped;
  num_unserved += part.num_unserved;
  add_value(load_E, part.load_E);
  add_value(score_E, part.score_E);
  add_value(importance_E, part.importance_E);
  add_value(soft_load_E, part.soft_load_E);
  add_value(squared_lse, part.squared_lse);
}

BalanceSums BalanceSums::with_gradient_of(const BalanceSums& part) const {
  BalanceSums result = *this;
  result.score_E = with_gradient(score_E, part.score_E);
  result.importance_E = with_gradient(importance_E, part.importance_E);
  result.soft_load_E = with_gradient(soft_load_E, part.soft_load_E);
  result.squared_lse = with_gradient(squared_lse, part.squared_lse);
  return result;
}

Tensor aux_loss(const BalanceSums& sums) {
  if (!sums.score_E.defined() || sums.num_tokens == 0) return at::zeros({}, kSums);
  const Tensor f_E = sums.load_E / sums.load_E.sum();
  return static_cast<double>(sums.load_E.numel()) * (f_E * sums.score_E).sum() / static_cast<double>(sums.num_tokens);
}

Tensor z_loss(const BalanceSums& sums) {
  if (!sums.squared_lse.defined() || sums.num_tokens == 0) return at::zeros({}, kSums);
  return sums.squared_lse / static_cast<double>(sums.num_tokens);
}

Tensor squared_variation(const Tensor& sums_E) {
  if (!sums_E.defined() || sums_E.numel() < 2) return at::zeros({}, kSums);
  const Tensor mean = sums_E.mean();
  return (sums_E - mean).square().mean() / (mean.square() + 1e-10);
}

Tensor balance_loss(const BalanceSums& sums, const BalanceOptions& options) {
  Tensor loss = at::zeros({}, kSums);
  if (options.aux_loss_weight != 0) loss = loss + options.aux_loss_weight * aux_loss(sums);
  if (options.z_loss_weight != 0) loss = loss + options.z_loss_weight * z_loss(sums);
  if (options.importance_loss_weight != 0)
    loss = loss + options.importance_loss_weight * squared_variation(sums.importance_E);
  if (options.load_loss_weight != 0) loss = loss + options.load_loss_weight * squared_variation(sums.soft_load_E);
  return loss;
}

LoadFigures load_figures(const BalanceSums& sums) {
  LoadFigures figures;
  const double total = sums.load_E.defined() ? sums.load_E.sum().item<double>() : 0;
  if (total == 0) return figures;
  const auto num_experts = static_cast<double>(sums.load_E.numel());
  double entropy = 0;
  for (int64_t e = 0; e < sums.load_E.numel(); ++e) {
    const double f = sums.load_E[e].item<double>() / total;
    if (f > 0) entropy -= f * std::log(f);
    if (f < 0.1 / num_experts) ++figures.num_dead;
  }
  figures.entropy = num_experts > 1 ? entropy / std::log(num_experts) : 1;
  figures.max_vio = sums.load_E.max().item<double>() * num_experts / total - 1;
  figures.dropped = static_cast<double>(sums.num_dropped) / total;
  figures.unserved = static_cast<double>(sums.num_unserved) / static_cast<double>(sums.num_tokens);
  return figures;
}

}  // namespace lathe::nn
