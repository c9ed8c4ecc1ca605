#pragma once

#include <ATen/core/ivalue.h>

#include <memory>
#include <vector>

#include "lathe/nn/linear.h"
#include "lathe/nn/moe_activation.h"

namespace lathe::nn {

/// A low-rank update of one expert's projection, W[rows] += scaling B A, in a pass over its bank.
struct BankUpdate {
  bool of_down = false;
  int64_t first_row = 0, num_rows = 0, rank = 0;
  double scaling = 1;
  kernels::Dropout dropout{};  ///< of A's input
  size_t A = 0, B = 0;         ///< places in the tensors of the pass
  bool of_all = false;         ///< those tensors are all experts': A [E R, in] by expert, B [rows, R E] by rank
};

/// A pass over a bank of experts: what its autograd node knows beside its tensors. Those stand in one list: x, gates,
/// both projections, biases, updates; a place of -1 means that there is none.
struct BankPass : torch::CustomClassHolder {
  static constexpr size_t kInput = 0, kGates = 1, kUp = 2, kDown = 3;

  ExpertGroups groups;
  ExpertActivationPass activation;
  int64_t num_experts = 0;
  int64_t hidden = 0;   ///< F, columns of the second product's input
  int64_t up_rows = 0;  ///< columns of the first product
  bool keeps = false;   ///< a backward pass may follow
  int up_bias = -1, down_bias = -1;
  std::vector<std::vector<BankUpdate>> updates;  ///< of each expert
  /// In the place of a projection's tensor, which is then empty: a frozen layer for each expert.
  std::vector<std::shared_ptr<LinearBase>> frozen_up, frozen_down;
};

/// Σ over the assignments a of a token, in the order of their experts, of gate_a expert_a(x): one expert at a time on
/// its contiguous rows. Saves the tensors, the sorted gates and the first product of the sorted rows, which the
/// backward pass uses up unless the graph is kept.
///
/// Shape   x [T, D], gates [A] -> [T, D]
Tensor run_bank(const std::vector<Tensor>& tensors, const c10::intrusive_ptr<BankPass>& pass);

}  // namespace lathe::nn
