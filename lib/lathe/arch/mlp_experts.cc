#include "lathe/arch/mlp_experts.h"

#include <array>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

constexpr int64_t kMaxMlpExperts = 4096;

using Router = MlpExperts::Router;
constexpr std::array<std::pair<Router, const char*>, 5> kRouters = {{{Router::Softmax, "softmax"},
                                                                     {Router::Sigmoid, "sigmoid"},
                                                                     {Router::Noisy, "noisy"},
                                                                     {Router::ExpertChoice, "expert_choice"},
                                                                     {Router::Random, "random"}}};

Router read_router(const JsonObject& moe) {
  const std::string name = moe.string("router", "softmax");
  for (const auto& [router, word] : kRouters) {
    if (name == word) return router;
  }
  throw moe.error("router", quote(name) + " is not supported",
                  "supported: softmax, sigmoid, noisy, expert_choice, random");
}

double read_from_zero(const JsonObject& moe, const std::string& key, double fallback) {
  const double value = moe.number(key, fallback);
  if (!(value >= 0)) throw moe.error(key, Diagnostic::expected("a number >= 0", describe(*moe.find(key))));
  return value;
}

}  // namespace

MlpExperts read_mlp_experts(const JsonObject& moe) {
  moe.refuse_other_keys({"num_experts", "top_k", "router", "renormalise", "shared_experts", "capacity_factor",
                         "aux_loss_weight", "z_loss_weight", "bias_update_rate", "jitter"});
  MlpExperts experts;
  experts.num_experts = moe.integer("num_experts", 1, kMaxMlpExperts);
  experts.top_k = moe.integer("top_k", 1, kMaxMlpExperts);
  experts.router = read_router(moe);
  experts.renormalise = moe.boolean("renormalise", true);
  experts.shared_experts = moe.integer("shared_experts", 0, kMaxMlpExperts, 0);
  experts.capacity_factor = read_from_zero(moe, "capacity_factor", 0);
  experts.aux_loss_weight = read_from_zero(moe, "aux_loss_weight", experts.aux_loss_weight);
  experts.z_loss_weight = read_from_zero(moe, "z_loss_weight", 0);
  experts.bias_update_rate = read_from_zero(moe, "bias_update_rate", 0);
  experts.jitter = read_from_zero(moe, "jitter", 0);
  for (const ExpertsMistake& mistake : check_mlp_experts(experts)) throw moe.error(mistake.key, mistake.problem);
  return experts;
}

Json to_json(const MlpExperts& experts) {
  std::string router;
  for (const auto& [value, word] : kRouters) {
    if (value == experts.router) router = word;
  }
  return {{"num_experts", experts.num_experts},
          {"top_k", experts.top_k},
          {"router", router},
          {"renormalise", experts.renormalise},
          {"shared_experts", experts.shared_experts},
          {"capacity_factor", experts.capacity_factor},
          {"aux_loss_weight", experts.aux_loss_weight},
          {"z_loss_weight", experts.z_loss_weight},
          {"bias_update_rate", experts.bias_update_rate},
          {"jitter", experts.jitter}};
}

std::vector<ExpertsMistake> check_mlp_experts(const MlpExperts& experts) {
  std::vector<ExpertsMistake> mistakes;
  const bool gated = experts.router != Router::ExpertChoice && experts.router != Router::Random;
  if (experts.num_experts > kMaxMlpExperts)
    mistakes.push_back({"num_experts", Diagnostic::expected("at most " + std::to_string(kMaxMlpExperts),
                                                            std::to_string(experts.num_experts))});
  if (experts.shared_experts > kMaxMlpExperts)
    mistakes.push_back({"shared_experts", Diagnostic::expected("at most " + std::to_string(kMaxMlpExperts),
                                                               std::to_string(experts.shared_experts))});
  if (experts.top_k > experts.num_experts)
    mistakes.push_back({"top_k", Diagnostic::expected("at most num_experts = " + std::to_string(experts.num_experts),
                                                      std::to_string(experts.top_k))});
  if (gated && experts.top_k == 1 && experts.renormalise && experts.num_experts > 1)
    mistakes.push_back({"renormalise", "with top_k 1 the gate is always 1 and the router gets no gradient"});
  if (experts.bias_update_rate > 0 && !experts.has_bias())
    mistakes.push_back({"bias_update_rate", "needs router: softmax or sigmoid"});
  if (experts.jitter >= 1) mistakes.push_back({"jitter", "expected a number in [0, 1)"});
  if (experts.jitter > 0 && !experts.has_bias()) mistakes.push_back({"jitter", "needs router: softmax or sigmoid"});
  return mistakes;
}

std::vector<ParameterSpec> mlp_expert_parameters(const std::string& path, const MlpExperts& experts,
                                                 const ExpertsShape& shape) {
  const int64_t E = experts.num_experts, D = shape.in_features, F = shape.hidden_features;
  std::vector<ParameterSpec> parameters;
  const bool noisy = experts.router == Router::Noisy;
  // Noisy gates start at zero, as in their paper: the noise alone breaks the ties.
  if (experts.router != Router::Random)
    parameters.push_back({path + ".gate.weight", {E, D}, noisy ? Initial{} : shape.router});
  if (noisy) parameters.push_back({path + ".gate.noise_weight", {E, D}});
  if (experts.has_bias()) parameters.push_back({path + ".gate.e_score_correction_bias", {E}});
  parameters.push_back({path + ".experts.up_proj", {E, F, D}, shape.up});
  parameters.push_back({path + ".experts.up_proj_bias", {E, F}, shape.up_bias});
  parameters.push_back({path + ".experts.down_proj", {E, D, F}, shape.down});
  parameters.push_back({path + ".experts.down_proj_bias", {E, D}, shape.down_bias});
  for (const LinearSpec& linear : shared_expert_linears(path, experts, D, F)) {
    const bool up = linear.path.ends_with(".up_proj");
    parameters.push_back(
        {linear.path + ".weight", {linear.out_features, linear.in_features}, up ? shape.up : shape.down});
    parameters.push_back({linear.path + ".bias", {linear.out_features}, up ? shape.up_bias : shape.down_bias});
  }
  return parameters;
}

std::vector<LinearSpec> shared_expert_linears(const std::string& path, const MlpExperts& experts, int64_t in_features,
                                              int64_t hidden_features) {
  if (experts.shared_experts == 0) return {};
  const int64_t hidden = experts.shared_experts * hidden_features;
  return {{path + ".shared_experts.up_proj", in_features, hidden},
          {path + ".shared_experts.down_proj", hidden, in_features}};
}

}  // namespace lathe::arch
