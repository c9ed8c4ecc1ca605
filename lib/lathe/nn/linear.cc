#include "lathe/nn/linear.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>

#include <cmath>
#include <utility>

namespace lathe::nn {

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

Tensor LinearImpl::product(const Tensor& x) {
  check_input(x);
  return at::linear(x, weight);
}

void LinearImpl::frozen_product(const Tensor& x, Tensor out) const { at::mm_out(out, x, weight.t()); }

void LinearImpl::frozen_input_gradient(const Tensor& grad, Tensor dx, bool accumulate) const {
  if (accumulate) {
    dx.addmm_(grad, weight);
  } else {
    at::mm_out(dx, grad, weight);
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
