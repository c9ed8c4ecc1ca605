#pragma once

#include <torch/arg.h>

#include <memory>
#include <vector>

#include "lathe/nn/dropout.h"
#include "lathe/nn/linear.h"

namespace lathe::nn {

/// Options of LoRALinear.
struct LoRALinearOptions {
  LoRALinearOptions(int64_t rank, double alpha) : rank_(rank), alpha_(alpha) {}
  /// Rows of A and columns of B, at least 1.
  TORCH_ARG(int64_t, rank);
  /// Numerator of the scaling, finite and above 0.
  TORCH_ARG(double, alpha);
  /// Divide alpha by sqrt(rank) instead of rank (Kalajdzievski 2023, "rsLoRA"). Default: false
  TORCH_ARG(bool, rank_stabilised) = false;
  /// Probability with which an element of A's input is zeroed in training, in [0, 1). Default: 0, none
  TORCH_ARG(double, dropout) = 0;

 public:
  double scaling() const;
};

/// A weight under a name of its own, as in `lora_A.weight`.
class MatrixImpl : public torch::nn::Module {
 public:
  MatrixImpl(int64_t rows, int64_t columns);
  Tensor weight;
};
TORCH_MODULE(Matrix);

/// A frozen linear map plus a trainable low-rank update:
///     y = x Wᵀ + b + scaling · dropout(x) Aᵀ Bᵀ,   scaling = alpha / rank, or alpha / sqrt(rank) rank-stabilised.
/// Source: Hu et al. 2021, "LoRA", eq. 3 (arXiv:2106.09685).
///
/// State   base_layer  any LinearBase, frozen
///         lora_A.weight [rank, in_features]   trainable, float32, kaiming_uniform(a = √5)
///         lora_B.weight [out_features, rank]  trainable, float32, zeros
/// Shape   x [..., in_features] -> y [..., out_features]; y has the dtype of x
/// Throws  c10::ValueError  on construction unless rank >= 1, alpha > 0, 0 <= dropout < 1
///                          in forward() unless x.size(-1) == in_features
///                          in merge() and unmerge() unless the base is a dense Linear, unmerged or merged respectively
/// Holds   forward(x) equals the frozen map exactly until the first optimizer step. Backward is by hand and keeps x
/// once,
///         the product with A once, and no dropout mask.
class LoRALinearImpl : public LinearBase {
 public:
  LoRALinearImpl(std::shared_ptr<LinearBase> base, LoRALinearOptions options);
  /// Wraps a torch layer, sharing its parameters: also freezes the caller's layer.
  LoRALinearImpl(const torch::nn::Linear& base, LoRALinearOptions options);

  /// Draws A from torch's generator and zeroes B.
  void reset_parameters();
  Tensor product(const Tensor& x) override;
  const Tensor& bias() const override { return base_layer->bias(); }
  void frozen_product(const Tensor& x, Tensor out) const override;
  void frozen_input_gradient(const Tensor& grad, Tensor dx, bool accumulate) const override;
  Tensor dense_weight() const override;
  void pretty_print(std::ostream& stream) const override;

  double scaling() const { return options.scaling(); }
  /// scaling · B A [out_features, in_features], float32.
  Tensor update() const;

  /// Adds the update to the base's weight (computed in float32, rounded once to its dtype); forward is then the base's.
  void merge();
  /// Subtracts it again; exact only up to the rounding of the base's dtype.
  void unmerge();
  bool merged() const { return merged_; }
  /// A disabled adapter is not computed and gets no gradient.
  void set_enabled(bool enabled) { enabled_ = enabled; }
  bool active() const { return enabled_ && !merged_; }

  /// The dropout of the next forward pass: in training, drawn from the thread's DropoutStream.
  kernels::Dropout next_dropout() const;

  LoRALinearOptions options;
  std::shared_ptr<LinearBase> base_layer;
  Matrix lora_A{nullptr};
  Matrix lora_B{nullptr};

 private:
  void add_to_base(double factor);

  bool enabled_ = true;
  bool merged_ = false;
};
TORCH_MODULE(LoRALinear);

/// Several linear maps of the same input as one tensor: [y_0 | y_1 | ...] [..., sum of out_features], biases added.
/// With frozen layers and adapters one autograd node computes them all: no copies forward, one input gradient backward.
Tensor joint_forward(const Tensor& x, const std::vector<LinearBase*>& linears);

}  // namespace lathe::nn
