#pragma once

#include <cstdint>

#include "lathe/nn/moe_router.h"

namespace lathe::nn {

// T tokens, E experts, A assignments; N tokens of a window, c_i assignments to expert i before any are dropped

/// Weights of the balance terms; 0: not computed.
struct BalanceOptions {
  /// Of E Σ f_i P_i, f_i = c_i / Σ c, P_i = mean of p_i: 1 when balanced, whatever top_k (transformers' formula gives
  /// top_k there). Source: Fedus et al. 2021, eq. 4 to 6.
  double aux_loss_weight = 0;
  /// Of mean (log Σ exp z)². Source: Zoph et al. 2022, "ST-MoE", eq. 5 (arXiv:2202.08906).
  double z_loss_weight = 0;
  /// Of CV² of the experts' summed gates and of their soft loads. Source: Shazeer et al. 2017, eq. 7 and 11.
  double importance_loss_weight = 0;
  double load_loss_weight = 0;
  /// b_i += rate sign(mean c - c_i) after each optimizer step. Source: Wang et al. 2024, "Auxiliary-loss-free load
  /// balancing" (arXiv:2408.15664).
  double bias_update_rate = 0;

  bool has_losses() const {
    return aux_loss_weight != 0 || z_loss_weight != 0 || importance_loss_weight != 0 || load_loss_weight != 0;
  }
};

/// What balance is judged by: sums over the tokens of a micro-batch, or of a whole accumulation window.
struct BalanceSums {
  int64_t num_tokens = 0;
  int64_t num_dropped = 0;   ///< assignments beyond the capacity
  int64_t num_unserved = 0;  ///< tokens without any assignment
  Tensor load_E;             ///< c_i, float64
  // Differentiable in a micro-batch's own sums where a term is made of them; undefined where the router has no such
  // thing.
  Tensor score_E;       ///< Σ_t p_i(t), float64
  Tensor importance_E;  ///< Σ_t gate_i(t), float64
  Tensor soft_load_E;   ///< Σ_t P(i is chosen under fresh noise), float64
  Tensor squared_lse;   ///< Σ_t (log Σ exp z(t))², float64

  /// The sums of one routing; `kept` is the same after drop_over_capacity(). Only what a term of `options` is made of
  /// keeps tensors for the backward pass.
  static BalanceSums of(const Routing& routing, const Routing& kept, const BalanceOptions& options = {});
  /// Adds the values of another micro-batch, without gradient.
  void add(const BalanceSums& part);
  /// These sums with the gradient of `part`, one of their own parts. The losses of a window are functions of its sums:
  /// the gradients of loss(window.with_gradient_of(part)) over all parts add up to that of the undivided window.
  BalanceSums with_gradient_of(const BalanceSums& part) const;
};

/// E Σ f_i P_i of the sums.
Tensor aux_loss(const BalanceSums& sums);
Tensor z_loss(const BalanceSums& sums);
/// (σ / µ)² of a vector, σ² its mean squared deviation; 0 for fewer than two entries.
Tensor squared_variation(const Tensor& sums_E);
/// The weighted sum of the terms, a float64 scalar.
Tensor balance_loss(const BalanceSums& sums, const BalanceOptions& options);

/// How the load of a window is spread.
struct LoadFigures {
  double entropy = 0;    ///< -Σ f ln f / ln E: 1 balanced, 0 one expert; 1 for a single expert
  double max_vio = 0;    ///< max c / mean c - 1
  int64_t num_dead = 0;  ///< experts with f < 0.1 / E
  double dropped = 0;    ///< share of the assignments
  double unserved = 0;   ///< share of the tokens
};
LoadFigures load_figures(const BalanceSums& sums);

}  // namespace lathe::nn
