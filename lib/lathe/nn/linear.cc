#include "lathe/nn/linear.h"

#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <utility>

#include "lathe/nn/gemm.h"

namespace lathe::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// To which both operands of a product with `x` are rounded.
at::ScalarType compute_type(const Precision& precision, const Tensor& x) {
  return precision.compute == at::kFloat ? x.scalar_type() : precision.compute;
}

struct LinearReference : torch::CustomClassHolder {
  std::shared_ptr<LinearImpl> linear;
};

// x [N, in_features] -> x Wᵀ. Never keeps a converted weight: it is converted again in the backward pass. x is kept
// only for a weight that trains.
struct OwnProduct : torch::autograd::Function<OwnProduct> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const c10::intrusive_ptr<LinearReference>& self) {
    Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
    self->linear->frozen_product(x, y);
    if (weight.requires_grad()) ctx->save_for_backward({x});
    ctx->saved_data["self"] = c10::IValue::make_capsule(self);
    ctx->saved_data["dtype"] = static_cast<int64_t>(x.scalar_type());
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto self = c10::static_intrusive_pointer_cast<LinearReference>(ctx->saved_data["self"].toCapsule());
    const Tensor& grad = grads[0];
    Tensor dx, dweight;
    if (ctx->needs_input_grad(1)) {  // first: what was dropped is computed again before dx is there, and gone then
      const Tensor x = ctx->get_saved_variables()[0];
      const at::ScalarType type = compute_type(self->linear->precision(), x);
      dweight = gemm(product_operand(grad, type).t(), product_operand(x, type)).to(self->linear->weight.scalar_type());
    }
    if (ctx->needs_input_grad(0)) {
      dx = at::empty({grad.size(0), self->linear->in_features()}, grad.options());
      self->linear->frozen_input_gradient(grad, dx, /*accumulate=*/false);
    }
    return {dx, dweight, Tensor()};
  }
};

}  // namespace

Tensor hollow(at::IntArrayRef shape, at::ScalarType dtype) {
  return at::full({}, NAN, at::TensorOptions().dtype(dtype)).expand(shape);
}

bool is_hollow(const Tensor& tensor) {
  return tensor.numel() > 1 && tensor.storage().nbytes() < static_cast<size_t>(tensor.numel()) * tensor.element_size();
}

LinearBase::LinearBase(std::string name, int64_t in_features, int64_t out_features)
    : torch::nn::Module(std::move(name)), in_features_(in_features), out_features_(out_features) {
  TORCH_CHECK_VALUE(in_features >= 1 && out_features >= 1, this->name(),
                    ": expected in_features and out_features >= 1, got ", in_features, " and ", out_features);
}

Tensor LinearBase::forward(const Tensor& x) {
  Tensor y = product(x);
  return bias().defined() ? y.add_(bias()) : y;
}

void LinearBase::check_input(const Tensor& x) const {
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == in_features_, name(),
                    ": expected x [..., in_features = ", in_features_, "], got ", x.sizes());
}

LinearImpl::LinearImpl(int64_t in_features, int64_t out_features, bool bias, at::ScalarType dtype)
    : LinearBase("Linear", in_features, out_features) {
  weight = register_parameter("weight", hollow({out_features, in_features}, dtype));
  if (bias) bias_ = register_parameter("bias", hollow({out_features}, dtype));
}

LinearImpl::LinearImpl(const torch::nn::Linear& linear)
    : LinearBase("Linear", linear->options.in_features(), linear->options.out_features()) {
  weight = register_parameter("weight", linear->weight, linear->weight.requires_grad());
  if (linear->bias.defined()) bias_ = register_parameter("bias", linear->bias, linear->bias.requires_grad());
}

Tensor LinearImpl::used_weight(const Tensor& x) const {
  const at::ScalarType type = compute_type(precision_, x);
  const bool rounds = precision_.storage != at::kFloat && weight.scalar_type() != precision_.storage;
  return product_operand(rounds ? weight.to(precision_.storage) : weight, type);
}

bool LinearImpl::is_plain(const Tensor& x) const {
  return weight.scalar_type() == x.scalar_type() && precision_.storage == at::kFloat &&
         precision_.compute == at::kFloat;
}

Tensor LinearImpl::product(const Tensor& x) {
  check_input(x);
  const auto self = c10::make_intrusive<LinearReference>();
  self->linear = std::static_pointer_cast<LinearImpl>(shared_from_this());
  if (x.dim() == 2) return OwnProduct::apply(x, weight, self);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = out_features();
  const Tensor y = OwnProduct::apply(x.reshape({-1, in_features()}), weight, self);
  return at::_unsafe_view(y, shape);  // no view to autograd: a bias added in place would copy gradients
}

void LinearImpl::frozen_product(const Tensor& x, Tensor out) const {
  const Tensor used = used_weight(x), input = product_operand(x, compute_type(precision_, x));
  if (used.scalar_type() == out.scalar_type()) {
    gemm_out(out, input, used.t());
  } else {
    out.copy_(gemm(input, used.t()));
  }
}

void LinearImpl::frozen_input_gradient(const Tensor& grad, Tensor dx, bool accumulate) const {
  const Tensor used = used_weight(grad), input = product_operand(grad, compute_type(precision_, grad));
  if (used.scalar_type() != grad.scalar_type()) {
    const Tensor product = gemm(input, used);
    accumulate ? dx.add_(product) : dx.copy_(product);
  } else if (accumulate) {
    gemm_add(dx, input, used);
  } else {
    gemm_out(dx, input, used);
  }
}

void LinearImpl::pretty_print(std::ostream& stream) const {
  stream << "lathe::nn::Linear(in_features=" << in_features() << ", out_features=" << out_features()
         << ", bias=" << (bias_.defined() ? "true" : "false") << ")";
}

LinearSlot::LinearSlot(SlottedModule* parent, std::string name, std::shared_ptr<LinearBase> module)
    : parent_(parent), name_(std::move(name)), module_(parent->register_module(name_, std::move(module))) {
  parent->slots_.insert(name_, this);
}

void LinearSlot::replace(std::shared_ptr<LinearBase> module) {
  TORCH_CHECK_VALUE(
      module->in_features() == module_->in_features() && module->out_features() == module_->out_features(), name_,
      ": expected a layer of ", module_->in_features(), " -> ", module_->out_features(), ", got ",
      module->in_features(), " -> ", module->out_features());
  parent_->replace_module(name_, module);
  module_ = std::move(module);
}

LinearSlot SlottedModule::register_linear(std::string name, std::shared_ptr<LinearBase> module) {
  return {this, std::move(name), std::move(module)};
}

std::vector<NamedSlot> named_slots(const torch::nn::Module& root) {
  std::vector<NamedSlot> found;
  const auto visit = [&found](const std::string& path, const torch::nn::Module& module) {
    const auto* slotted = dynamic_cast<const SlottedModule*>(&module);
    if (slotted == nullptr) return;
    for (const auto& item : slotted->slots())
      found.push_back({path.empty() ? item.key() : path + "." + item.key(), item.value()});
  };
  visit("", root);
  for (const auto& item : root.named_modules("", /*include_self=*/false)) visit(item.key(), *item.value());
  return found;
}

}  // namespace lathe::nn
