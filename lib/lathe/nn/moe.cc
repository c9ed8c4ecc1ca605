#include "lathe/nn/moe.h"

#include <ATen/ops/sigmoid.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "lathe/base/random.h"
#include "lathe/nn/checkpoint.h"
#include "lathe/nn/lora.h"
#include "lathe/nn/moe_activation.h"

namespace lathe::nn {

GatedMLPImpl::GatedMLPImpl(int64_t in_features, int64_t hidden_features)
    : MLPBase("GatedMLP"),
      gate_proj(register_linear("gate_proj", Linear(in_features, hidden_features, false).ptr())),
      up_proj(register_linear("up_proj", Linear(in_features, hidden_features, false).ptr())),
      down_proj(register_linear("down_proj", Linear(hidden_features, in_features, false).ptr())) {}

Tensor GatedMLPImpl::forward(const Tensor& x) { return down_proj(swiglu(joint_forward(x, {&*gate_proj, &*up_proj}))); }

GeluMLPImpl::GeluMLPImpl(int64_t in_features, int64_t hidden_features, Gelu kind)
    : MLPBase("GeluMLP"),
      up_proj(register_linear("up_proj", Linear(in_features, hidden_features).ptr())),
      down_proj(register_linear("down_proj", Linear(hidden_features, in_features).ptr())),
      kind_(kind) {}

Tensor GeluMLPImpl::forward(const Tensor& x) { return down_proj(linear_gelu(x, *up_proj, kind_)); }

MoELayerImpl::MoELayerImpl(std::shared_ptr<RouterBase> router_, std::shared_ptr<ExpertBankBase> experts_,
                           MoELayerOptions options_)
    : SlottedModule("MoELayer"), options(std::move(options_)) {
  router = register_module("gate", std::move(router_));
  experts = register_module("experts", std::move(experts_));
  TORCH_CHECK_VALUE(router->num_experts() == experts->num_experts() && router->in_features() == experts->in_features(),
                    "MoELayer: expected a router and a bank of the same experts and width, got ", router->num_experts(),
                    " of ", router->in_features(), " and ", experts->num_experts(), " of ", experts->in_features());
  for (const double factor : {options.capacity_factor(), options.eval_capacity_factor()})
    TORCH_CHECK_VALUE(factor >= 0, "MoELayer: expected capacity factors >= 0, got ", factor);
  TORCH_CHECK_VALUE(options.expert_dropout() >= 0 && options.expert_dropout() < 1,
                    "MoELayer: expected expert_dropout in [0, 1), got ", options.expert_dropout());
  TORCH_CHECK_VALUE(options.balance().bias_update_rate == 0 || router->selection_bias().defined(),
                    "MoELayer: expected a router with a selection bias where bias_update_rate is not 0, got ",
                    router->name());
}

void MoELayerImpl::add_shared_expert(const std::string& name, const std::shared_ptr<MLPBase>& shared, bool gated) {
  shared_ = register_module(name, shared);
  if (gated)
    shared_gate_.reset(
        new LinearSlot(register_linear("shared_expert_gate", Linear(router->in_features(), 1, /*bias=*/false).ptr())));
}

Tensor MoELayerImpl::mixed(const Tensor& x_TD, const Pass& pass, uint64_t layer) {
  const uint64_t key = make_key(pass.key, layer, name_key("moe"));
  const Routing routing = router->route(x_TD, {pass.training, key});
  const double factor = pass.training ? options.capacity_factor() : options.eval_capacity_factor();
  const Routing kept =
      factor > 0 ? drop_over_capacity(routing, factor, options.drop_order(), make_key(key, name_key("capacity")))
                 : routing;
  // Also in a recomputation, which must save the same tensors; only the first run counts.
  BalanceSums sums = BalanceSums::of(routing, kept, options.balance());
  if (!recomputing()) {
    last_ = std::move(sums);
    if (pass.training && counting_) window_.add(last_);
  }
  Tensor y = experts->forward(x_TD, kept, pass.dropout(options.expert_dropout(), layer, "experts"));
  if (shared_ == nullptr) return y;
  const Tensor shared = shared_->forward(x_TD);
  return y + (shared_gate_ ? at::sigmoid((*shared_gate_)(x_TD)) * shared : shared);
}

Tensor MoELayerImpl::forward(const Tensor& x, const Pass& pass, uint64_t layer, const Tensor& counted) {
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == router->in_features(),
                    "MoELayer: expected x [..., in_features = ", router->in_features(), "], got ", x.sizes());
  const Tensor x_TD = x.reshape({-1, x.size(-1)});
  if (!counted.defined()) return mixed(x_TD, pass, layer).view(x.sizes());
  TORCH_CHECK_VALUE(counted.sizes() == x.sizes().slice(0, static_cast<size_t>(x.dim()) - 1),
                    "MoELayer: expected counted of the shape of x's rows, got ", counted.sizes(), " for ", x.sizes());
  const Tensor rows = counted.reshape({-1}).nonzero().squeeze(1);
  const Tensor y = mixed(x_TD.index_select(0, rows), pass, layer);
  return at::zeros(x_TD.sizes(), y.options()).index_copy(0, rows, y).view(x.sizes());
}

Tensor MoELayerImpl::window_loss() const { return balance_loss(window_.with_gradient_of(last_), options.balance()); }

void MoELayerImpl::end_window() {
  const double rate = options.balance().bias_update_rate;
  if (rate != 0 && window_.load_E.defined()) {
    Tensor bias = router->selection_bias();
    bias.add_((window_.load_E.mean() - window_.load_E).sign().to(bias.scalar_type()), rate);
  }
  forget_window();
}

void MoELayerImpl::forget_window() {
  window_ = {};
  last_ = {};
  counting_ = true;
}

std::vector<std::shared_ptr<MoELayerImpl>> moe_layers(const torch::nn::Module& root) {
  std::vector<std::shared_ptr<MoELayerImpl>> layers;
  for (const auto& item : root.named_modules("", /*include_self=*/false)) {
    if (auto layer = std::dynamic_pointer_cast<MoELayerImpl>(item.value())) layers.push_back(std::move(layer));
  }
  return layers;
}

}  // namespace lathe::nn
