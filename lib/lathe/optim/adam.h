#pragma once

#include <ATen/core/TensorBody.h>

#include <string>
#include <utility>
#include <vector>

namespace lathe::optim {

using at::Tensor;
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// What updates the trained parameters from their gradients. A checkpoint holds state(); restore_state() puts it back.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// One update with learning rate `lr`; parameters without a gradient are left alone.
  virtual void step(double lr) = 0;
  virtual NamedTensors state() const = 0;
  /// Throws Error{Data} (naming `file`) unless `state` has exactly the tensors of state(), with their shapes.
  virtual void restore_state(const NamedTensors& state, const std::string& file) = 0;

  const NamedTensors& parameters() const { return parameters_; }
  void zero_grad();

 protected:
  explicit Optimizer(NamedTensors parameters) : parameters_(std::move(parameters)) {}

 private:
  NamedTensors parameters_;
};

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;  ///< never on tensors of fewer than two dimensions
};

/// Adam with decoupled weight decay, one fused pass over parameter, gradient and both moments:
///     p -= lr · weight_decay · p;   p -= lr · m̂ / (√v̂ + eps)
/// Source: Loshchilov and Hutter 2019 (arXiv:1711.05101); equals torch.optim.AdamW.
/// State   NAME.exp_avg, NAME.exp_avg_sq (the parameter's shape and dtype), NAME.step (float32 scalar)
class AdamW : public Optimizer {
 public:
  AdamW(NamedTensors parameters, AdamWOptions options);
  void step(double lr) override;
  NamedTensors state() const override;
  void restore_state(const NamedTensors& state, const std::string& file) override;

 private:
  AdamWOptions options_;
  std::vector<Tensor> exp_avgs_, exp_avg_sqs_, steps_;
};

struct GradientNorm {
  double norm;  ///< over all gradients together, before clipping
  bool finite;  ///< whether every element is finite
};

/// Scales all gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does; max_norm 0 only
/// measures. Leaves the gradients alone when an element is not finite.
GradientNorm clip_gradients(const NamedTensors& parameters, double max_norm);

}  // namespace lathe::optim
