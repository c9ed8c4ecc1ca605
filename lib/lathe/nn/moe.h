#pragma once

#include <torch/arg.h>

#include <memory>
#include <string>
#include <vector>

#include "lathe/nn/linear.h"
#include "lathe/nn/modules.h"
#include "lathe/nn/moe_balance.h"
#include "lathe/nn/moe_experts.h"
#include "lathe/nn/pass.h"

namespace lathe::nn {

/// An MLP, as a dense layer or as shared expert.
///
/// Shape   x [N, D] -> [N, D]
class MLPBase : public SlottedModule {
 public:
  using SlottedModule::SlottedModule;
  virtual Tensor forward(const Tensor& x) = 0;
};

/// down(silu(gate(x)) · up(x)): the SwiGLU MLP of decoders.
///
/// State   gate_proj, up_proj [F, D], down_proj [D, F]: slots, without biases
class GatedMLPImpl : public MLPBase {
 public:
  GatedMLPImpl(int64_t in_features, int64_t hidden_features);
  Tensor forward(const Tensor& x) override;
  LinearSlot gate_proj, up_proj, down_proj;
};
TORCH_MODULE(GatedMLP);

/// down(gelu(up(x))).
///
/// State   up_proj [F, D], down_proj [D, F]: slots, with biases
class GeluMLPImpl : public MLPBase {
 public:
  GeluMLPImpl(int64_t in_features, int64_t hidden_features, Gelu kind);
  Tensor forward(const Tensor& x) override;
  LinearSlot up_proj, down_proj;

 private:
  Gelu kind_;
};
TORCH_MODULE(GeluMLP);

/// Options of MoELayer.
struct MoELayerOptions {
  /// An expert takes at most ceil(A capacity_factor / E) of the A assignments of a training pass. 0: all, dropless.
  /// Default: 0
  TORCH_ARG(double, capacity_factor) = 0;
  /// The same outside training. Default: 0, since dropped tokens only make an evaluation worse
  TORCH_ARG(double, eval_capacity_factor) = 0;
  /// Who goes when an expert is full. Default: Position
  TORCH_ARG(DropOrder, drop_order) = DropOrder::Position;
  /// Dropout of the experts' hidden activations in training, in [0, 1). Default: 0
  TORCH_ARG(double, expert_dropout) = 0;
  /// Terms of balance_loss() and the rate of the bias. Default: none
  TORCH_ARG(BalanceOptions, balance) = {};
};

/// Mixture of experts: a router chooses, a bank of experts computes, their gated outputs are summed, and a shared
/// expert that every token sees may be added:
///     y = Σ_a gate_a expert_a(x)  [+ σ(x w) shared(x)].
/// Router and bank are any RouterBase and ExpertBankBase. The residual is the caller's.
///
/// Balance is per layer and over a whole accumulation window. A training pass counts its sums into the window, once
/// (not in the recomputation of checkpoint(), not in evaluation); end_window() closes it after the optimizer step. The
/// loss of a window of several micro-batches needs the window's sums first: count it by passes without gradient, then
/// set_counting(false) and train.
///
/// State   gate (the router), experts (the bank), shared expert under the name given, shared_expert_gate.weight [1, D]
/// Shape   x [..., D] -> [..., D]. counted [...] bool: padding (false) is not routed, takes no capacity and counts
///         nowhere; its output is zero
/// Throws  c10::ValueError  on construction unless router and bank agree in experts and width, capacity factors are
///                          >= 0, dropout in [0, 1), and a router with selection_bias() stands where
///                          bias_update_rate > 0
///                          in forward() unless x is [..., D] and `counted` has the shape of its rows
class MoELayerImpl : public SlottedModule {
 public:
  MoELayerImpl(std::shared_ptr<RouterBase> router, std::shared_ptr<ExpertBankBase> experts,
               MoELayerOptions options = {});

  /// Adds a shared expert, registered as `name`, with or without the sigmoid gate `shared_expert_gate`.
  void add_shared_expert(const std::string& name, const std::shared_ptr<MLPBase>& shared, bool gated);

  /// `layer` tells this layer's randomness from that of others.
  Tensor forward(const Tensor& x, const Pass& pass = {}, uint64_t layer = 0, const Tensor& counted = {});

  /// The sums of the last pass, in training with their gradient.
  const BalanceSums& last() const { return last_; }
  /// The sums of the training passes since the last end_window().
  const BalanceSums& window() const { return window_; }
  void set_counting(bool counting) { counting_ = counting; }
  /// The balance loss of the window, with the gradient of the last pass. A float64 scalar.
  Tensor window_loss() const;
  /// Moves the selection bias, forgets the sums, and counts again.
  void end_window();
  /// The same for a window whose step is left out: nothing moves.
  void forget_window();

  MoELayerOptions options;
  std::shared_ptr<RouterBase> router;
  std::shared_ptr<ExpertBankBase> experts;

 private:
  Tensor mixed(const Tensor& x_TD, const Pass& pass, uint64_t layer);

  std::shared_ptr<MLPBase> shared_;
  std::unique_ptr<LinearSlot> shared_gate_;
  BalanceSums last_, window_;
  bool counting_ = true;
};
TORCH_MODULE(MoELayer);

/// Every MoELayer below `root`, in order.
std::vector<std::shared_ptr<MoELayerImpl>> moe_layers(const torch::nn::Module& root);

}  // namespace lathe::nn
