#pragma once

#include <ATen/core/TensorBody.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace lathe::optim {

using at::Tensor;
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// A parameter that is trained, and how it differs from the others.
struct Trained {
  std::string name;
  Tensor parameter;
  double lr_factor = 1;     ///< its learning rate over that of the step
  double weight_decay = 0;  ///< what it means is the optimizer's
};

/// All of `parameters` with one weight decay, which never acts on tensors of fewer than two dimensions.
std::vector<Trained> with_weight_decay(const NamedTensors& parameters, double weight_decay);

/// Copies `from` over the tensors of the same names in `to`. Throws Error{Data} naming `file` unless names and shapes
/// agree.
void restore_tensors(const NamedTensors& from, const NamedTensors& to, const std::string& file);

/// What updates the trained parameters from their gradients. Another update rule is one class: its state is registered
/// with add_state(), its step() walks groups(). A checkpoint holds state(); restore_state() puts it back.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// One update with learning rate `lr` (times each parameter's factor); parameters without a gradient are left alone.
  virtual void step(double lr) = 0;

  const std::vector<Trained>& trained() const { return trained_; }
  const NamedTensors& state() const { return state_; }
  /// Throws Error{Data} (naming `file`) unless `state` has exactly the tensors of state(), with their shapes.
  void restore_state(const NamedTensors& state, const std::string& file);
  void zero_grad();

 protected:
  explicit Optimizer(std::vector<Trained> trained) : trained_(std::move(trained)) {}

  /// A zeroed tensor per parameter, like it or a float32 scalar, saved as PARAMETER.name.
  std::vector<Tensor> add_state(const std::string& name, bool scalar = false);

  /// Parameters that have a gradient and share their factor and decay: what one fused call updates.
  struct Group {
    double lr_factor = 1, weight_decay = 0;
    std::vector<size_t> indices;
    std::vector<Tensor> parameters, grads;

    std::vector<Tensor> select(const std::vector<Tensor>& of_all) const;
  };
  std::vector<Group> groups() const;

 private:
  std::vector<Trained> trained_;
  NamedTensors state_;
};

struct GradientNorm {
  double norm;  ///< over all gradients together, before clipping
  bool finite;  ///< whether every element is finite
};

/// Scales all gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does; max_norm 0 only
/// measures. Leaves the gradients alone when an element is not finite.
GradientNorm clip_gradients(const std::vector<Trained>& trained, double max_norm);

}  // namespace lathe::optim
