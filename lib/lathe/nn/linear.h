#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace lathe::nn {

using at::Tensor;

/// A tensor with a shape and a dtype but no storage: one NaN, expanded. A skeleton's parameters are hollow until
/// set_data() fills them.
Tensor hollow(at::IntArrayRef shape, at::ScalarType dtype = at::kFloat);
bool is_hollow(const Tensor& tensor);

/// A linear map y = x Wᵀ + b of any kind: dense, quantised, adapted.
///
/// Shape   x [..., in_features] -> y [..., out_features]
/// Throws  c10::ValueError  in forward() and product() unless x.size(-1) == in_features
class LinearBase : public torch::nn::Module {
 public:
  LinearBase(std::string name, int64_t in_features, int64_t out_features);

  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }

  /// x Wᵀ + b, differentiable.
  Tensor forward(const Tensor& x);
  /// x Wᵀ, differentiable; a fresh tensor that its own backward does not need, so that a fused successor may overwrite
  /// it.
  virtual Tensor product(const Tensor& x) = 0;
  /// [out_features], or undefined.
  virtual const Tensor& bias() const = 0;

  /// out [N, out_features] = x [N, in_features] Wᵀ, outside autograd. `out` may be a column range of a wider tensor.
  virtual void frozen_product(const Tensor& x, Tensor out) const = 0;
  /// dx [N, in_features] = or += grad [N, out_features] W, outside autograd. The gradient of frozen_product.
  virtual void frozen_input_gradient(const Tensor& grad, Tensor dx, bool accumulate) const = 0;
  /// W [out_features, in_features] as a dense tensor outside autograd: the stored one, or a temporary.
  virtual Tensor dense_weight() const = 0;

 protected:
  void check_input(const Tensor& x) const;

 private:
  int64_t in_features_;
  int64_t out_features_;
};

/// How matrices are kept and multiplied. Vectors (biases, norms) are always float32.
struct Precision {
  at::ScalarType storage = at::kFloat;  ///< float32, or bfloat16: every use sees the weight rounded to it
  at::ScalarType compute = at::kFloat;  ///< of the products; float32 means: the type of x
};

/// A dense linear map. Under storage bfloat16 a frozen weight is a bfloat16 tensor; one that trains is its float32
/// master, rounded whenever it is used, so that small updates add up and the gradient is float32.
///
/// State   weight [out_features, in_features], bias [out_features] or absent; hollow until loaded
class LinearImpl : public LinearBase {
 public:
  LinearImpl(int64_t in_features, int64_t out_features, bool bias = true, at::ScalarType dtype = at::kFloat);
  /// Shares the parameters of a torch layer: both see every update, and freezing one freezes the other.
  explicit LinearImpl(const torch::nn::Linear& linear);

  Tensor product(const Tensor& x) override;
  const Tensor& bias() const override { return bias_; }
  void frozen_product(const Tensor& x, Tensor out) const override;
  void frozen_input_gradient(const Tensor& grad, Tensor dx, bool accumulate) const override;
  Tensor dense_weight() const override { return weight; }
  void pretty_print(std::ostream& stream) const override;

  void set_precision(Precision precision) { precision_ = precision; }
  Precision precision() const { return precision_; }
  /// Whether the weight multiplies `x` as it is: without rounding or conversion.
  bool is_plain(const Tensor& x) const;

  Tensor weight;

 private:
  // The weight as a product with `x` uses it: rounded to storage, in the type of the computation.
  Tensor used_weight(const Tensor& x) const;

  Tensor bias_;
  Precision precision_;
};
TORCH_MODULE(Linear);

class SlottedModule;

/// The place of a linear layer in its parent: calls whatever layer is in it. Lives as a member of the SlottedModule
/// that made it.
class LinearSlot {
 public:
  LinearSlot(const LinearSlot&) = delete;
  LinearSlot& operator=(const LinearSlot&) = delete;

  Tensor operator()(const Tensor& x) const { return module_->forward(x); }
  LinearBase* operator->() const { return module_.get(); }
  LinearBase& operator*() const { return *module_; }
  const std::shared_ptr<LinearBase>& module() const { return module_; }

  /// Puts another layer of the same sizes in the slot and in the parent's module tree.
  /// Throws c10::ValueError when the sizes differ.
  void replace(std::shared_ptr<LinearBase> module);

 private:
  friend class SlottedModule;
  LinearSlot(SlottedModule* parent, std::string name, std::shared_ptr<LinearBase> module);

  SlottedModule* parent_;
  std::string name_;
  std::shared_ptr<LinearBase> module_;
};

/// The base of modules that hold linear layers in slots. Neither copyable nor Cloneable: a copy's slots would point at
/// the original.
class SlottedModule : public torch::nn::Module {
 public:
  explicit SlottedModule(std::string name) : torch::nn::Module(std::move(name)) {}
  SlottedModule(const SlottedModule&) = delete;
  SlottedModule& operator=(const SlottedModule&) = delete;

  const torch::OrderedDict<std::string, LinearSlot*>& slots() const { return slots_; }

 protected:
  /// For the constructor's initialiser list: `query(register_linear("query", Linear(384, 384).ptr()))`.
  LinearSlot register_linear(std::string name, std::shared_ptr<LinearBase> module);

 private:
  friend class LinearSlot;
  torch::OrderedDict<std::string, LinearSlot*> slots_;
};

struct NamedSlot {
  std::string path;  ///< the slot's dotted module path below the root
  LinearSlot* slot;
};

/// Every slot below `root`, in registration order. Slots inside a slot's own module are not visited.
std::vector<NamedSlot> named_slots(const torch::nn::Module& root);

}  // namespace lathe::nn
