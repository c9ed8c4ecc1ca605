#pragma once

#include <torch/arg.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <string>

namespace lathe::nn {

using at::Tensor;

// T tokens, D model width, E experts, K top_k, A assignments

/// Which experts see which tokens, and with what weight: a list of assignments, in any number per token. What the
/// balance terms read stands beside it.
struct Routing {
  Tensor token_A;   ///< int64
  Tensor expert_A;  ///< int64
  Tensor gate_A;    ///< differentiable
  int64_t num_tokens = 0;
  int64_t num_experts = 0;

  Tensor logits_TE;  ///< differentiable; undefined for a router without logits
  Tensor scores_TE;  ///< differentiable probabilities, rows sum to 1; undefined likewise
  Tensor load_TE;    ///< differentiable probability of being chosen; undefined unless the router is noisy
};

/// The randomness of one routing: a key per (seed, micro-batch, layer). Noise and jitter act in training only.
struct RouterPass {
  bool training = false;
  uint64_t key = 0;
};

/// Chooses experts for tokens. The choice is a decision of decide_once(): a recomputation repeats it. Ties go to the
/// lower index; logits and gates are float32 (float64 for float64 weights).
///
/// State   weight [E, D]
/// Shape   x [T, D] -> Routing
/// Throws  c10::ValueError  on construction unless 1 <= top_k <= num_experts
///                          in route() unless x is [T, D]
class RouterBase : public torch::nn::Module {
 public:
  RouterBase(std::string name, int64_t in_features, int64_t num_experts, int64_t top_k);

  int64_t in_features() const { return in_features_; }
  int64_t num_experts() const { return num_experts_; }
  /// Experts per token; for expert choice on average, rounded up.
  int64_t top_k() const { return top_k_; }

  virtual Routing route(const Tensor& x_TD, RouterPass pass) = 0;
  /// Draws the weights: N(0, std²) from counters.
  virtual void initialise(uint64_t key, double std);
  /// [E], added to the scores when choosing and only then: what loss-free balancing moves. Undefined without one.
  virtual Tensor selection_bias() const { return {}; }

  Tensor weight;

 protected:
  void check_input(const Tensor& x_TD) const;
  /// x in the weight's type, multiplied element by element by U(1 - jitter, 1 + jitter) in training.
  Tensor router_input(const Tensor& x_TD, RouterPass pass, double jitter) const;

 private:
  int64_t in_features_, num_experts_, top_k_;
};

/// Options of TopKRouter.
struct TopKRouterOptions {
  enum class Score {
    Softmax,        ///< p = softmax(z) over all experts
    SoftmaxOfTopK,  ///< softmax over the chosen logits only: Softmax renormalised, written the other way round
    Sigmoid,        ///< s = sigmoid(z)
  };
  /// Default: Softmax
  TORCH_ARG(Score, score) = Score::Softmax;
  /// Divide the chosen scores by their sum. Not with top_k = 1: the gate would be 1 and the router get no gradient.
  /// Default: true
  TORCH_ARG(bool, renormalise) = true;
  /// Keep `e_score_correction_bias` [E], which moves the choice and never the gates. Default: false
  TORCH_ARG(bool, selection_bias) = false;
  /// Experts stand in this many groups of equal size, of which the best `top_groups` by the sum of their two best
  /// biased scores may be chosen from. Default: 1, no groups
  TORCH_ARG(int64_t, num_groups) = 1;
  TORCH_ARG(int64_t, top_groups) = 1;
  /// Factor of all gates. Default: 1
  TORCH_ARG(double, scale) = 1;
  /// The input is multiplied by U(1 - jitter, 1 + jitter) in training, in [0, 1). Default: 0
  TORCH_ARG(double, jitter) = 0;
};

/// The top_k experts of each token by score. With the options' defaults and top_k = 2, Mixtral; softmax, not
/// renormalised and top_k = 1, Switch; sigmoid, bias and groups, DeepSeek-V3.
/// Source: Fedus et al. 2021, "Switch transformers" (arXiv:2101.03961); DeepSeek-AI 2024, "DeepSeek-V3", eq. 12 to 16
/// (arXiv:2412.19437).
///
/// Throws  c10::ValueError  on construction for top_k = 1 renormalised (with more than one expert), groups that do not
///                          divide the experts, hold fewer than two of them, or leave fewer than top_k to choose from
class TopKRouterImpl : public RouterBase {
 public:
  TopKRouterImpl(int64_t in_features, int64_t num_experts, int64_t top_k, TopKRouterOptions options = {});
  Routing route(const Tensor& x_TD, RouterPass pass) override;
  Tensor selection_bias() const override { return bias_; }

  TopKRouterOptions options;

 private:
  Tensor choice_scores(const Tensor& scores_TE) const;

  Tensor bias_;
};
TORCH_MODULE(TopKRouter);

/// The top_k experts by noisy logits H = z + N(0, 1) softplus(W_noise x); gates are softmax(H) over the chosen, or
/// over all experts when not renormalised. Without noise outside training. load_TE is the probability that an expert is
/// chosen when its noise alone is drawn again.
/// Source: Shazeer et al. 2017, "Outrageously large neural networks", eq. 3 to 5 and 8 to 11 (arXiv:1701.06538).
///
/// State   weight [E, D], noise_weight [E, D]; zeros by initialise(), as in the paper
/// Throws  c10::ValueError  on construction for top_k = 1 renormalised (with more than one expert)
class NoisyTopKRouterImpl : public RouterBase {
 public:
  NoisyTopKRouterImpl(int64_t in_features, int64_t num_experts, int64_t top_k, bool renormalise = true);
  Routing route(const Tensor& x_TD, RouterPass pass) override;
  void initialise(uint64_t key, double std) override;

  Tensor noise_weight;

 private:
  Tensor load_probability(const Tensor& logits_TE, const Tensor& noisy_TE, const Tensor& scale_TE,
                          const Tensor& chosen_TK) const;

  bool renormalise_;
};
TORCH_MODULE(NoisyTopKRouter);

/// Each expert takes its ceil(T capacity_factor / E) best tokens by softmax over the experts, which is also the gate:
/// balanced by construction. A token may be taken by none. Not causal.
/// Source: Zhou et al. 2022, "Mixture-of-experts with expert choice routing" (arXiv:2202.09368).
///
/// Throws  c10::ValueError  on construction unless 0 < capacity_factor <= E
class ExpertChoiceRouterImpl : public RouterBase {
 public:
  ExpertChoiceRouterImpl(int64_t in_features, int64_t num_experts, double capacity_factor);
  Routing route(const Tensor& x_TD, RouterPass pass) override;

 private:
  double capacity_factor_;
};
TORCH_MODULE(ExpertChoiceRouter);

/// top_k distinct experts drawn uniformly, gates 1 / top_k: the control that is balanced and knows nothing.
///
/// State   none; `weight` is undefined
class RandomRouterImpl : public RouterBase {
 public:
  RandomRouterImpl(int64_t in_features, int64_t num_experts, int64_t top_k);
  Routing route(const Tensor& x_TD, RouterPass pass) override;
  void initialise(uint64_t /*key*/, double /*std*/) override {}
};
TORCH_MODULE(RandomRouter);

/// The indices [N, k] of the k largest of each row, largest first; ties, and what is NaN, by the lower index.
Tensor stable_top_k(const Tensor& rows, int64_t k);

/// What happens to the assignments of an expert that is over its capacity.
enum class DropOrder {
  Position,     ///< first choices before second choices, then earlier tokens first
  Probability,  ///< the largest gates first
  Random,       ///< drawn from the pass's key
};

/// Keeps at most ceil(A capacity_factor / E) of A assignments per expert; the tokens of the others get nothing from it.
/// A decision of decide_once(). A token's assignments stand in its order of preference. Throws for a factor of 0.
Routing drop_over_capacity(const Routing& routing, double capacity_factor, DropOrder order, uint64_t key);

}  // namespace lathe::nn
