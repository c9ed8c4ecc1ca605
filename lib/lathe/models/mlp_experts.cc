#include "lathe/models/mlp_experts.h"

#include <memory>

namespace lathe::models {
namespace {

std::shared_ptr<nn::RouterBase> build_router(const arch::MlpExperts& experts, int64_t in_features) {
  using Router = arch::MlpExperts::Router;
  using Score = nn::TopKRouterOptions::Score;
  const int64_t num_experts = experts.num_experts, top_k = experts.top_k;
  switch (experts.router) {
    case Router::Noisy:
      return nn::NoisyTopKRouter(in_features, num_experts, top_k, experts.renormalise).ptr();
    case Router::ExpertChoice:
      return nn::ExpertChoiceRouter(in_features, num_experts, static_cast<double>(top_k)).ptr();
    case Router::Random:
      return nn::RandomRouter(in_features, num_experts, top_k).ptr();
    case Router::Softmax:
    case Router::Sigmoid:
      break;
  }
  nn::TopKRouterOptions options;
  options.score(experts.router == Router::Sigmoid ? Score::Sigmoid : Score::Softmax)
      .renormalise(experts.renormalise)
      .selection_bias(experts.has_bias())
      .jitter(experts.jitter);
  return nn::TopKRouter(in_features, num_experts, top_k, options).ptr();
}

}  // namespace

nn::MoELayer build_mlp_experts(const arch::MlpExperts& experts, int64_t in_features, int64_t hidden_features,
                               arch::Activation activation) {
  nn::ExpertBankOptions bank(experts.num_experts, in_features, hidden_features);
  bank.activation(activation == arch::Activation::Gelu ? nn::ExpertActivation::Gelu : nn::ExpertActivation::GeluTanh)
      .bias(true);
  nn::BalanceOptions balance;
  balance.aux_loss_weight = experts.aux_loss_weight;
  balance.z_loss_weight = experts.z_loss_weight;
  balance.bias_update_rate = experts.bias_update_rate;
  if (experts.router == arch::MlpExperts::Router::Noisy) {
    // Its own two losses in place of the auxiliary one.
    balance.aux_loss_weight = 0;
    balance.importance_loss_weight = balance.load_loss_weight = experts.aux_loss_weight;
  }
  nn::MoELayerOptions options;
  options.capacity_factor(experts.capacity_factor).balance(balance);
  nn::MoELayer layer(build_router(experts, in_features), nn::ExpertBank(bank).ptr(), options);
  if (experts.shared_experts > 0) {
    const auto kind = activation == arch::Activation::Gelu ? nn::Gelu::Erf : nn::Gelu::Tanh;
    layer->add_shared_expert("shared_experts",
                             nn::GeluMLP(in_features, experts.shared_experts * hidden_features, kind).ptr(), false);
  }
  return layer;
}

}  // namespace lathe::models
