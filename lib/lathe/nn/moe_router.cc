#include "lathe/nn/moe_router.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/special_ndtr.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "lathe/base/random.h"
#include "lathe/nn/checkpoint.h"
#include "lathe/nn/counter_tensors.h"
#include "lathe/nn/linear.h"

namespace lathe::nn {
namespace {

void refuse_single_renormalised(const char* name, int64_t num_experts, int64_t top_k, bool renormalised) {
  TORCH_CHECK_VALUE(top_k > 1 || num_experts == 1 || !renormalised, name,
                    ": expected top_k >= 2 with renormalised gates, got 1: the gate would always be 1 and the router "
                    "would get no gradient");
}

// The assignments of top_k experts per token, token by token in order of preference.
Routing token_choice(const Tensor& chosen_TK, const Tensor& gate_TK, int64_t num_experts) {
  Routing routing;
  routing.num_tokens = chosen_TK.size(0);
  routing.num_experts = num_experts;
  routing.token_A = at::arange(routing.num_tokens, at::kLong).repeat_interleave(chosen_TK.size(1));
  routing.expert_A = chosen_TK.reshape({-1});
  routing.gate_A = gate_TK.reshape({-1});
  return routing;
}

}  // namespace

Tensor stable_top_k(const Tensor& rows, int64_t k) {
  const Tensor values = rows.detach().to(at::kDouble).contiguous();
  const int64_t columns = values.size(1);
  Tensor chosen = at::empty({values.size(0), k}, at::kLong);
  std::vector<int64_t> order(static_cast<size_t>(columns));
  for (int64_t r = 0; r < values.size(0); ++r) {
    const double* row = values.const_data_ptr<double>() + r * columns;
    const auto key = [row](int64_t i) {
      return std::isnan(row[i]) ? -std::numeric_limits<double>::infinity() : row[i];
    };
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + k, order.end(),
                      [&](int64_t a, int64_t b) { return key(a) > key(b) || (key(a) == key(b) && a < b); });
    std::copy_n(order.begin(), k, chosen.data_ptr<int64_t>() + r * k);
  }
  return chosen;
}

RouterBase::RouterBase(std::string name, int64_t in_features, int64_t num_experts, int64_t top_k)
    : torch::nn::Module(std::move(name)), in_features_(in_features), num_experts_(num_experts), top_k_(top_k) {
  TORCH_CHECK_VALUE(in_features >= 1, this->name(), ": expected in_features >= 1, got ", in_features);
  TORCH_CHECK_VALUE(num_experts >= 1, this->name(), ": expected num_experts >= 1, got ", num_experts);
  TORCH_CHECK_VALUE(top_k >= 1 && top_k <= num_experts, this->name(),
                    ": expected 1 <= top_k <= num_experts = ", num_experts, ", got ", top_k);
}

void RouterBase::initialise(uint64_t key, double std) {
  weight.set_data(counter_normal(weight.sizes(), key).mul_(std).to(at::kFloat));
}

void RouterBase::check_input(const Tensor& x_TD) const {
  TORCH_CHECK_VALUE(x_TD.dim() == 2 && x_TD.size(1) == in_features_, name(),
                    ": expected x [T, in_features = ", in_features_, "], got ", x_TD.sizes());
}

Tensor RouterBase::router_input(const Tensor& x_TD, RouterPass pass, double jitter) const {
  const Tensor x = x_TD.to(weight.scalar_type());
  if (!pass.training || jitter == 0) return x;
  const Tensor draws = counter_uniform(x.sizes(), make_key(pass.key, name_key("jitter")));
  return x * draws.mul_(2).sub_(1).mul_(jitter).add_(1).to(x.scalar_type());
}

TopKRouterImpl::TopKRouterImpl(int64_t in_features, int64_t num_experts, int64_t top_k, TopKRouterOptions options_)
    : RouterBase("TopKRouter", in_features, num_experts, top_k), options(options_) {
  const bool of_top_k = options.score() == TopKRouterOptions::Score::SoftmaxOfTopK;
  refuse_single_renormalised("TopKRouter", num_experts, top_k, options.renormalise() || of_top_k);
  TORCH_CHECK_VALUE(options.jitter() >= 0 && options.jitter() < 1, "TopKRouter: expected jitter in [0, 1), got ",
                    options.jitter());
  const int64_t groups = options.num_groups(), group_size = groups >= 1 ? num_experts / groups : 0;
  TORCH_CHECK_VALUE(groups >= 1 && num_experts % groups == 0,
                    "TopKRouter: expected num_groups that divide num_experts = ", num_experts, ", got ", groups);
  TORCH_CHECK_VALUE(options.top_groups() >= 1 && options.top_groups() <= groups,
                    "TopKRouter: expected 1 <= top_groups <= num_groups = ", groups, ", got ", options.top_groups());
  TORCH_CHECK_VALUE(groups == 1 || group_size >= 2, "TopKRouter: expected groups of at least 2 experts, got ",
                    group_size);
  TORCH_CHECK_VALUE(options.top_groups() * group_size >= top_k,
                    "TopKRouter: expected top_k <= ", options.top_groups() * group_size, ", the experts of ",
                    options.top_groups(), " groups, got ", top_k);
  weight = register_parameter("weight", hollow({num_experts, in_features}));
  if (options.selection_bias()) bias_ = register_buffer("e_score_correction_bias", at::zeros({num_experts}));
}

Tensor TopKRouterImpl::choice_scores(const Tensor& scores_TE) const {
  const at::NoGradGuard no_grad;
  Tensor scores = scores_TE.detach();
  if (bias_.defined()) scores = scores + bias_;
  if (options.top_groups() == options.num_groups()) return scores;
  const int64_t num_tokens = scores.size(0), groups = options.num_groups();
  const Tensor grouped_TGe = scores.view({num_tokens, groups, num_experts() / groups});
  const Tensor group_scores_TG = std::get<0>(grouped_TGe.topk(2, -1)).sum(-1);
  const Tensor chosen = stable_top_k(group_scores_TG, options.top_groups());
  const Tensor masked = at::ones({num_tokens, groups}, at::kBool).scatter(1, chosen, 0);
  // Not 0: with negative s + b an expert of a group that is out would win.
  return grouped_TGe.masked_fill(masked.unsqueeze(-1), -std::numeric_limits<double>::infinity())
      .view({num_tokens, num_experts()});
}

Routing TopKRouterImpl::route(const Tensor& x_TD, RouterPass pass) {
  using Score = TopKRouterOptions::Score;
  check_input(x_TD);
  const Tensor logits_TE = at::linear(router_input(x_TD, pass, options.jitter()), weight);
  const bool sigmoid = options.score() == Score::Sigmoid;
  const Tensor scores_TE = sigmoid ? at::sigmoid(logits_TE) : at::softmax(logits_TE, -1);
  const Tensor chosen_TK = decide_once([&] { return stable_top_k(choice_scores(scores_TE), top_k()); });
  Tensor gate_TK;
  if (options.score() == Score::SoftmaxOfTopK) {
    gate_TK = at::softmax(logits_TE.gather(1, chosen_TK), -1);
  } else {
    gate_TK = scores_TE.gather(1, chosen_TK);
    // Sigmoids may all vanish; softmax's largest do not.
    if (options.renormalise()) gate_TK = gate_TK / (gate_TK.sum(-1, true) + (sigmoid ? 1e-20 : 0));
  }
  if (options.scale() != 1) gate_TK = gate_TK * options.scale();
  Routing routing = token_choice(chosen_TK, gate_TK, num_experts());
  routing.logits_TE = logits_TE;
  routing.scores_TE = sigmoid ? scores_TE / (scores_TE.sum(-1, true) + 1e-20) : scores_TE;
  return routing;
}

NoisyTopKRouterImpl::NoisyTopKRouterImpl(int64_t in_features, int64_t num_experts, int64_t top_k, bool renormalise)
    : RouterBase("NoisyTopKRouter", in_features, num_experts, top_k), renormalise_(renormalise) {
  refuse_single_renormalised("NoisyTopKRouter", num_experts, top_k, renormalise);
  weight = register_parameter("weight", hollow({num_experts, in_features}));
  noise_weight = register_parameter("noise_weight", hollow({num_experts, in_features}));
}

void NoisyTopKRouterImpl::initialise(uint64_t /*key*/, double /*std*/) {
  weight.set_data(at::zeros(weight.sizes()));
  noise_weight.set_data(at::zeros(noise_weight.sizes()));
}

Tensor NoisyTopKRouterImpl::load_probability(const Tensor& logits_TE, const Tensor& noisy_TE, const Tensor& scale_TE,
                                             const Tensor& chosen_TK) const {
  if (top_k() == num_experts()) return at::ones(logits_TE.sizes(), logits_TE.options());
  // The rank k value of H without expert i: H's k-th largest, or the one after it when i is among the k.
  const Tensor next_T1 = decide_once([&] { return stable_top_k(noisy_TE, top_k() + 1).narrow(1, top_k(), 1); });
  const Tensor kth_T1 = noisy_TE.gather(1, chosen_TK.narrow(1, top_k() - 1, 1)), after_T1 = noisy_TE.gather(1, next_T1);
  const Tensor is_chosen_TE = at::zeros(logits_TE.sizes(), at::kBool).scatter(1, chosen_TK, 1);
  return at::special_ndtr((logits_TE - at::where(is_chosen_TE, after_T1, kth_T1)) / scale_TE);
}

Routing NoisyTopKRouterImpl::route(const Tensor& x_TD, RouterPass pass) {
  check_input(x_TD);
  const Tensor x = router_input(x_TD, pass, 0);
  const Tensor logits_TE = at::linear(x, weight);
  Tensor noisy_TE = logits_TE, scale_TE;
  if (pass.training) {
    scale_TE = at::softplus(at::linear(x, noise_weight));
    const Tensor noise_TE = counter_normal(logits_TE.sizes(), make_key(pass.key, name_key("noise")));
    noisy_TE = logits_TE + noise_TE.to(logits_TE.scalar_type()) * scale_TE;
  }
  const Tensor chosen_TK = decide_once([&] { return stable_top_k(noisy_TE, top_k()); });
  const Tensor gate_TK =
      renormalise_ ? at::softmax(noisy_TE.gather(1, chosen_TK), -1) : at::softmax(noisy_TE, -1).gather(1, chosen_TK);
  Routing routing = token_choice(chosen_TK, gate_TK, num_experts());
  routing.logits_TE = logits_TE;
  routing.scores_TE = at::softmax(logits_TE, -1);
  if (pass.training) routing.load_TE = load_probability(logits_TE, noisy_TE, scale_TE, chosen_TK);
  return routing;
}

ExpertChoiceRouterImpl::ExpertChoiceRouterImpl(int64_t in_features, int64_t num_experts, double capacity_factor)
    : RouterBase("ExpertChoiceRouter", in_features, num_experts,
                 std::clamp(static_cast<int64_t>(std::ceil(capacity_factor)), int64_t{1}, num_experts)),
      capacity_factor_(capacity_factor) {
  TORCH_CHECK_VALUE(capacity_factor > 0 && capacity_factor <= static_cast<double>(num_experts),
                    "ExpertChoiceRouter: expected 0 < capacity_factor <= num_experts = ", num_experts, ", got ",
                    capacity_factor);
  weight = register_parameter("weight", hollow({num_experts, in_features}));
}

Routing ExpertChoiceRouterImpl::route(const Tensor& x_TD, RouterPass pass) {
  check_input(x_TD);
  const Tensor logits_TE = at::linear(router_input(x_TD, pass, 0), weight);
  const Tensor scores_TE = at::softmax(logits_TE, -1);
  const int64_t num_tokens = x_TD.size(0);
  const double share = static_cast<double>(num_tokens) * capacity_factor_ / static_cast<double>(num_experts());
  const int64_t capacity = std::min(num_tokens, static_cast<int64_t>(std::ceil(share)));
  const Tensor chosen_EC = decide_once([&] { return stable_top_k(scores_TE.t(), capacity); });
  Routing routing;
  routing.num_tokens = num_tokens;
  routing.num_experts = num_experts();
  routing.token_A = chosen_EC.reshape({-1});
  routing.expert_A = at::arange(num_experts(), at::kLong).repeat_interleave(capacity);
  routing.gate_A = scores_TE.t().gather(1, chosen_EC).reshape({-1});
  routing.logits_TE = logits_TE;
  routing.scores_TE = scores_TE;
  return routing;
}

RandomRouterImpl::RandomRouterImpl(int64_t in_features, int64_t num_experts, int64_t top_k)
    : RouterBase("RandomRouter", in_features, num_experts, top_k) {}

Routing RandomRouterImpl::route(const Tensor& x_TD, RouterPass pass) {
  check_input(x_TD);
  const Tensor draws = counter_uniform({x_TD.size(0), num_experts()}, make_key(pass.key, name_key("random router")));
  const at::ScalarType type = x_TD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor gates = at::full({x_TD.size(0), top_k()}, 1 / static_cast<double>(top_k()), type);
  return token_choice(stable_top_k(draws, top_k()), gates, num_experts());
}

Routing drop_over_capacity(const Routing& routing, double capacity_factor, DropOrder order, uint64_t key) {
  TORCH_CHECK_VALUE(capacity_factor > 0, "drop_over_capacity: expected a capacity_factor above 0, got ",
                    capacity_factor);
  const auto decide = [&] {
    const int64_t num_assignments = routing.expert_A.numel(), num_experts = routing.num_experts;
    const double share = static_cast<double>(num_assignments) * capacity_factor / static_cast<double>(num_experts);
    const auto capacity = static_cast<int64_t>(std::ceil(share));
    const Tensor experts = routing.expert_A.contiguous(), tokens = routing.token_A.contiguous();
    const Tensor gates = routing.gate_A.detach().to(at::kDouble).contiguous();
    const auto* expert = experts.const_data_ptr<int64_t>();
    const auto* token = tokens.const_data_ptr<int64_t>();
    // An assignment's rank among those of its token, and what it is sorted by: small first.
    std::vector<double> place(static_cast<size_t>(num_assignments));
    std::vector<int64_t> choices(static_cast<size_t>(routing.num_tokens), 0);
    for (int64_t a = 0; a < num_assignments; ++a) {
      const auto rank = choices[static_cast<size_t>(token[a])]++;
      place[static_cast<size_t>(a)] = order == DropOrder::Position      ? static_cast<double>(rank)
                                      : order == DropOrder::Probability ? -gates.const_data_ptr<double>()[a]
                                                                        : random_uniform(key, static_cast<uint64_t>(a));
    }
    std::vector<int64_t> sorted(static_cast<size_t>(num_assignments));
    std::iota(sorted.begin(), sorted.end(), 0);
    std::stable_sort(sorted.begin(), sorted.end(), [&](int64_t a, int64_t b) {
      return place[static_cast<size_t>(a)] < place[static_cast<size_t>(b)];
    });
    std::vector<int64_t> load(static_cast<size_t>(num_experts), 0), kept;
    for (const int64_t a : sorted) {
      if (load[static_cast<size_t>(expert[a])]++ < capacity) kept.push_back(a);
    }
    std::sort(kept.begin(), kept.end());
    return at::tensor(kept, at::kLong);
  };
  const Tensor kept = decide_once(decide);
  Routing result = routing;
  result.token_A = routing.token_A.index_select(0, kept);
  result.expert_A = routing.expert_A.index_select(0, kept);
  result.gate_A = routing.gate_A.index_select(0, kept);
  return result;
}

}  // namespace lathe::nn
