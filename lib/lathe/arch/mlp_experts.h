#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lathe/arch/spec.h"
#include "lathe/base/json.h"

namespace lathe::arch {

/// The experts that stand for the MLP of each layer of an encoder, or for a Mixer's channel mixing: what
/// `model.moe` of a recipe and the key `moe` of Lathe's own config.json files say.
struct MlpExperts {
  enum class Router { Softmax, Sigmoid, Noisy, ExpertChoice, Random };

  // The shape of the checkpoint:
  int64_t num_experts = 8;
  int64_t top_k = 2;
  Router router = Router::Softmax;
  bool renormalise = true;
  int64_t shared_experts = 0;  ///< of the same size, side by side as one MLP that every token sees
  // What training may change at any time:
  double capacity_factor = 0;
  double aux_loss_weight = 0.01, z_loss_weight = 0, bias_update_rate = 0;
  double jitter = 0;

  /// Whether the choice is made under e_score_correction_bias, which is zero unless bias_update_rate moves it.
  bool has_bias() const { return router == Router::Softmax || router == Router::Sigmoid; }
};

/// The value of `moe`, checked. Throws Error{Data} naming the key.
MlpExperts read_mlp_experts(const JsonObject& moe);
Json to_json(const MlpExperts& experts);
/// What is wrong with a combination of values that are each in range, and the key that says so; empty: nothing.
struct ExpertsMistake {
  std::string key, problem;
};
std::vector<ExpertsMistake> check_mlp_experts(const MlpExperts& experts);

/// The sizes of the MLP that experts stand for, and how its matrices and the router are drawn.
struct ExpertsShape {
  int64_t in_features = 0, hidden_features = 0;
  Initial up = {}, up_bias = {}, down = {}, down_bias = {}, router = {};
};
/// The parameters below `path`: gate.*, experts.*, shared_experts.*.
std::vector<ParameterSpec> mlp_expert_parameters(const std::string& path, const MlpExperts& experts,
                                                 const ExpertsShape& shape);
/// The linear layers below `path`: shared_experts.up_proj and .down_proj, or none.
std::vector<LinearSpec> shared_expert_linears(const std::string& path, const MlpExperts& experts, int64_t in_features,
                                              int64_t hidden_features);

}  // namespace lathe::arch
