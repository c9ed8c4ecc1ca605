#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lathe/nn/moe.h"
#include "tensor_expect.h"

namespace lathe::nn::testing {

using lathe::testing::ramp;

inline constexpr int64_t kWidth = 5, kHidden = 3;

/// A float64 bank filled with ramps.
inline ExpertBank filled_bank(int64_t num_experts, ExpertActivation activation = ExpertActivation::SwiGLU,
                              bool bias = false) {
  ExpertBank bank(ExpertBankOptions(num_experts, kWidth, kHidden).activation(activation).bias(bias));
  double phase = 0;
  for (Tensor& parameter : bank->parameters())
    parameter.set_data(ramp(parameter.sizes(), 0.7, phase += 0.4, at::kDouble));
  return bank;
}

/// Assignments in no order: tokens 0 and 3 twice, token 1 not at all, expert 1 of 3 idle.
inline Routing some_routing(at::ScalarType type = at::kDouble) {
  Routing routing;
  routing.num_tokens = 4;
  routing.num_experts = 3;
  routing.token_A = at::tensor({3, 0, 2, 3, 0}, at::kLong);
  routing.expert_A = at::tensor({2, 0, 2, 0, 2}, at::kLong);
  routing.gate_A = at::tensor({0.5, 0.25, 1.5, -0.5, 2.0}, at::kDouble).to(type).requires_grad_();
  return routing;
}

/// Fills the updates of a bank with ramps; returns them.
inline std::vector<Tensor> fill_updates(ExpertBankImpl& bank, at::ScalarType type = at::kDouble) {
  double phase = 0.3;
  std::vector<Tensor> filled;
  for (const auto& update : bank.updates()) {
    for (Tensor matrix : {update.lora_A->weight, update.lora_B->weight}) {
      matrix.set_data(ramp(matrix.sizes(), 0.8, phase += 0.2, at::kDouble).to(type));
      filled.push_back(matrix);
    }
  }
  return filled;
}

/// A float64 router filled with ramps.
template <typename Router>
Router filled(Router router) {
  double phase = 0.2;
  for (Tensor& parameter : router->parameters())
    parameter.set_data(ramp(parameter.sizes(), 1.7, phase += 0.3, at::kDouble));
  return router;
}

/// x W_eᵀ and so on for one token and one expert, written down without any dispatch.
inline Tensor dumb_expert(const ExpertBankImpl& bank, const Tensor& x, int64_t e) {
  Tensor h = at::matmul(bank.up_weight[e], x);
  if (bank.up_bias.defined()) h = h + bank.up_bias[e];
  const Tensor act = bank.options.activation() == ExpertActivation::SwiGLU
                         ? at::silu(h.narrow(0, 0, kHidden)) * h.narrow(0, kHidden, kHidden)
                         : at::gelu(h, bank.options.activation() == ExpertActivation::GeluTanh ? "tanh" : "none");
  Tensor y = at::matmul(bank.down_weight[e], act);
  if (bank.down_bias.defined()) y = y + bank.down_bias[e];
  return y;
}

/// gates [T, E], 0 where an expert is not chosen.
inline Tensor dumb_mixture(const ExpertBankImpl& bank, const Tensor& x, const Tensor& gates_TE) {
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < x.size(0); ++t) {
    Tensor y = at::zeros({kWidth}, x.options());
    for (int64_t e = 0; e < bank.num_experts(); ++e) {
      if (gates_TE[t][e].item<double>() != 0) y = y + gates_TE[t][e] * dumb_expert(bank, x[t], e);
    }
    rows.push_back(y);
  }
  return at::stack(rows);
}

inline std::vector<Tensor> gradients(const Tensor& y, const std::vector<Tensor>& inputs) {
  for (const Tensor& input : inputs) input.mutable_grad().reset();
  (y * ramp(y.sizes(), 1.3, 0.4, at::kDouble)).sum().backward();
  std::vector<Tensor> grads;
  for (const Tensor& input : inputs)
    grads.push_back(input.grad().defined() ? input.grad().clone() : at::zeros_like(input));
  return grads;
}

template <typename F>
std::string message_of(F action) {
  try {
    action();
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "nothing was thrown";
}

}  // namespace lathe::nn::testing
