#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lathe::app {

/// One setting of the collapse laboratory: a router, what balances it and how strongly.
struct CollapseCase {
  enum class Router { Softmax, Sigmoid, Noisy, ExpertChoice, Random };
  /// What the logits are computed from.
  enum class RouterInput { AsIs, WithoutOffset, LayerNorm };
  /// What the laboratory expects of it.
  enum class Role { Collapses, Cause, TooWeak, Cure, Control, Shown };

  std::string name;
  Role role = Role::Collapses;
  Router router = Router::Softmax;
  RouterInput input = RouterInput::AsIs;
  int64_t top_k = 1;
  double router_std = 0.144;                        ///< that of torch::nn::Linear's uniform draw, 1 / √48
  double aux = 0, z = 0, importance = 0, load = 0;  ///< weights of the losses
  double bias_rate = 0;
  double jitter = 0;
  double capacity = 0;         ///< factor, 0: dropless
  bool from_half_way = false;  ///< the balance acts in the second half only
};

/// One moment of a run, over one batch.
struct CollapseSnapshot {
  int64_t step = 0;
  double loss = 0;  ///< squared error over that of the mean
  double entropy = 0, max_vio = 0;
  double information = 0;  ///< I(expert; cluster) in units of ln E
  double dropped = 0;      ///< share of the assignments
  double unserved = 0;     ///< share of the tokens
  int64_t dead = 0;
  std::vector<double> load;  ///< share of each expert
};

struct CollapseRun {
  CollapseSnapshot final;  ///< on fresh data, without noise
  std::vector<CollapseSnapshot> history;
};

inline constexpr int64_t kCollapseExperts = 8, kCollapseClusters = 16, kCollapseSteps = 1500, kCollapseTokens = 1024,
                         kCollapseTestTokens = 8192;
inline constexpr double kCollapseBiasRate = 0.01;

/// 16 Gaussian clusters, each with a linear map of its own, whose inputs share a large constant; 8 experts learn the
/// maps together. Data, weights and noise are functions of `seed`. Meant for one thread.
CollapseRun run_collapse(const CollapseCase& which, uint64_t seed);

/// The laboratory's table, in its order; the last is the run that is cured half-way.
std::vector<CollapseCase> collapse_cases();

/// runs[c][s]: case c under seed s, worked off by as many threads as LibTorch has, with the same bits for any number.
std::vector<std::vector<CollapseRun>> run_laboratory(const std::vector<CollapseCase>& cases, int64_t num_seeds);

}  // namespace lathe::app
