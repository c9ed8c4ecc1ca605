#include "lathe/optim/optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "lathe/base/error.h"

namespace lathe::optim {
namespace {

constexpr int64_t kNormPiece = int64_t{1} << 18;  // elements in double at a time

}  // namespace

std::vector<Trained> with_weight_decay(const NamedTensors& parameters, double weight_decay) {
  std::vector<Trained> trained;
  for (const auto& [name, parameter] : parameters)
    trained.push_back({name, parameter, 1, parameter.dim() >= 2 ? weight_decay : 0});
  return trained;
}

void Optimizer::zero_grad() {
  for (const Trained& item : trained_) item.parameter.mutable_grad().reset();
}

std::vector<Tensor> Optimizer::add_state(const std::string& name, bool scalar) {
  std::vector<Tensor> tensors;
  for (const Trained& item : trained_) {
    tensors.push_back(scalar ? at::zeros({}, at::kFloat) : at::zeros_like(item.parameter).detach());
    state_.emplace_back(item.name + "." + name, tensors.back());
  }
  return tensors;
}

std::vector<Tensor> Optimizer::Group::select(const std::vector<Tensor>& of_all) const {
  std::vector<Tensor> selected;
  for (const size_t index : indices) selected.push_back(of_all[index]);
  return selected;
}

std::vector<Optimizer::Group> Optimizer::groups() const {
  std::vector<Group> groups;
  for (size_t i = 0; i < trained_.size(); ++i) {
    const Trained& item = trained_[i];
    if (!item.parameter.grad().defined()) continue;
    auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& other) {
      return other.lr_factor == item.lr_factor && other.weight_decay == item.weight_decay;
    });
    if (group == groups.end()) group = groups.insert(group, Group{item.lr_factor, item.weight_decay, {}, {}, {}});
    group->indices.push_back(i);
    group->parameters.push_back(item.parameter);
    group->grads.push_back(item.parameter.grad());
  }
  return groups;
}

void restore_tensors(const NamedTensors& from, const NamedTensors& to, const std::string& file) {
  const at::NoGradGuard no_grad;
  if (from.size() != to.size()) {
    throw data_error(file, Diagnostic::expected(std::to_string(to.size()) + " tensors", std::to_string(from.size())));
  }
  const std::map<std::string, Tensor> by_name(from.begin(), from.end());
  for (const auto& [name, tensor] : to) {
    const auto found = by_name.find(name);
    if (found == by_name.end()) throw data_error_in(file, name, "is missing");
    if (found->second.sizes() != tensor.sizes())
      throw data_error_in(file, name, "has another shape than the parameter");
    Tensor(tensor).copy_(found->second);
  }
}

void Optimizer::restore_state(const NamedTensors& restored, const std::string& file) {
  restore_tensors(restored, state_, file);
}

GradientNorm clip_gradients(const std::vector<Trained>& trained, double max_norm) {
  const at::NoGradGuard no_grad;
  double sum_of_squares = 0;
  for (const Trained& item : trained) {
    if (!item.parameter.grad().defined()) continue;
    for (const Tensor& piece : item.parameter.grad().reshape({-1}).split(kNormPiece))
      sum_of_squares += piece.to(at::kDouble).square().sum().item<double>();
  }
  const GradientNorm result{std::sqrt(sum_of_squares), std::isfinite(sum_of_squares)};
  const double scale = max_norm / (result.norm + 1e-6);
  if (!result.finite || max_norm == 0 || scale >= 1) return result;
  for (const Trained& item : trained) {
    if (item.parameter.grad().defined()) item.parameter.grad().mul_(scale);
  }
  return result;
}

}  // namespace lathe::optim
