#include "lathe/nn/moe_balance.h"

#include <cmath>

#include "lathe/base/random.h"
#include "lathe/nn/counter_tensors.h"
#include "moe_testing.h"

namespace lathe::nn {
namespace {

using lathe::testing::expect_close;
using lathe::testing::expect_gradients;
using lathe::testing::expect_identical;
using testing::filled;
using testing::filled_bank;
using testing::kWidth;
using testing::ramp;

constexpr int64_t kNumBalanced = 4;

// The routing of given logits [T, E].
Routing route_logits(const Tensor& logits, int64_t top_k, TopKRouterOptions options = {}) {
  TopKRouter router(logits.size(1), logits.size(1), top_k, options);
  router->weight.set_data(at::eye(logits.size(1), at::kDouble));
  return router->route(logits, {});
}

TEST(BalanceLoss, IsOneForBalancedLoadsWhateverTopK) {
  // Token t prefers experts t, t + 1, ...: every expert is used equally.
  const Tensor base = at::tensor({3.0, 2.0, 1.0, 0.0}, at::kDouble);
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < 8; ++t) rows.push_back(base.roll(t));
  const Tensor logits = at::stack(rows);
  for (const int64_t k : {2, 3, 4}) {
    const Routing routing = route_logits(logits, k);
    EXPECT_NEAR(aux_loss(BalanceSums::of(routing, routing)).item<double>(), 1, 1e-14) << k;
  }
}

TEST(BalanceLoss, EqualsTheFormulaOfTransformersDividedByTopK) {
  const Tensor logits = ramp({16, kNumBalanced}, 1.9, 0.3, at::kDouble);
  const Routing routing = route_logits(logits, 2);
  const Tensor p = at::softmax(logits, 1), chosen = std::get<1>(p.topk(2, 1));
  const Tensor theirs =
      kNumBalanced * (at::one_hot(chosen, kNumBalanced).sum(1).to(at::kDouble).mean(0) * p.mean(0)).sum();
  expect_close(aux_loss(BalanceSums::of(routing, routing)), theirs / 2, 1e-14, 0);
}

TEST(BalanceLoss, ReadsOneForAUniformRouterInFullCollapse) {
  const Routing routing =
      route_logits(at::zeros({16, kNumBalanced}, at::kDouble), 1, TopKRouterOptions().renormalise(false));
  const BalanceSums sums = BalanceSums::of(routing, routing);
  EXPECT_NEAR(aux_loss(sums).item<double>(), 1, 1e-14) << "the loss does not see it";
  const LoadFigures figures = load_figures(sums);
  EXPECT_EQ(figures.entropy, 0);
  EXPECT_EQ(figures.max_vio, 3);
  EXPECT_EQ(figures.num_dead, 3);
}

TEST(BalanceLoss, ZLossOfZeroLogitsIsTheSquaredLogarithmOfTheExperts) {
  const Routing routing = route_logits(at::zeros({5, kNumBalanced}, at::kDouble), 2);
  EXPECT_NEAR(z_loss(BalanceSums::of(routing, routing)).item<double>(), std::pow(std::log(4.0), 2), 1e-14);
}

TEST(BalanceLoss, SquaredVariationIsVarianceOverSquaredMean) {
  // Mean 2, variance 1.
  EXPECT_NEAR(squared_variation(at::tensor({1.0, 3.0, 1.0, 3.0}, at::kDouble)).item<double>(), 0.25, 1e-10);
  EXPECT_EQ(squared_variation(at::tensor({5.0}, at::kDouble)).item<double>(), 0);
}

TEST(BalanceLoss, GradientsEqualFiniteDifferencesForNoisyRouters) {
  NoisyTopKRouter router = filled(NoisyTopKRouter(kWidth, kNumBalanced, int64_t{2}));
  const Tensor x = ramp({6, kWidth}, 0.9, 0.1, at::kDouble).requires_grad_();
  const BalanceOptions options{
      .aux_loss_weight = 1, .z_loss_weight = 0.5, .importance_loss_weight = 2, .load_loss_weight = 3};
  expect_gradients(
      [&] {
        const Routing routing = router->route(x, {.training = true, .key = 9});
        return balance_loss(BalanceSums::of(routing, routing, options), options).view({1});
      },
      {x, router->weight, router->noise_weight});
}

TEST(BalanceLoss, SoftLoadIsTheProbabilityOfBeingChosenUnderFreshNoise) {
  NoisyTopKRouter router = filled(NoisyTopKRouter(kWidth, kNumBalanced, int64_t{2}));
  const Tensor x = ramp({5, kWidth}, 0.9, 0.1, at::kDouble);
  const Routing routing = router->route(x, {.training = true, .key = 9});
  for (Tensor& parameter : router->parameters()) parameter.requires_grad_(false);
  const Tensor z = at::linear(x, router->weight), scale = at::softplus(at::linear(x, router->noise_weight)),
               noisy = z + counter_normal(z.sizes(), make_key(uint64_t{9}, name_key("noise"))) * scale;
  for (int64_t t = 0; t < x.size(0); ++t) {
    for (int64_t e = 0; e < kNumBalanced; ++e) {
      // Expert e is chosen when its H exceeds the second largest of the others'.
      Tensor others = noisy[t].clone();
      others[e] = -INFINITY;
      const double second = std::get<0>(others.topk(2))[1].item<double>();
      const double margin = (z[t][e].item<double>() - second) / scale[t][e].item<double>();
      EXPECT_NEAR(routing.load_TE[t][e].item<double>(), std::erfc(-margin / std::sqrt(2.0)) / 2, 1e-14);
    }
  }
  EXPECT_FALSE(router->route(x, {}).load_TE.defined());
}

// Gradients and figures of a window of 8 tokens cut into micro-batches of `size`.
std::vector<Tensor> train_window(int64_t size) {
  MoELayerOptions options;
  options.balance(
      {.aux_loss_weight = 0.3, .z_loss_weight = 0.2, .importance_loss_weight = 0.4, .bias_update_rate = 0.01});
  MoELayer layer(filled(TopKRouter(kWidth, kNumBalanced, 2, TopKRouterOptions().selection_bias(true))).ptr(),
                 filled_bank(kNumBalanced).ptr(), options);
  const Tensor x = ramp({8, kWidth}, 0.9, 0.1, at::kDouble).requires_grad_();
  if (size < 8) {
    const at::NoGradGuard no_grad;
    for (int64_t i = 0; i < 8; i += size) layer->forward(x.narrow(0, i, size), {.training = true});
    layer->set_counting(false);
  }
  Tensor loss;
  for (int64_t i = 0; i < 8; i += size) {
    const Tensor y = layer->forward(x.narrow(0, i, size), {.training = true});
    loss = layer->window_loss();
    (y.square().sum() / 8 + loss).backward();
  }
  std::vector<Tensor> result = {loss.detach(), layer->window().load_E, x.grad()};
  for (const Tensor& parameter : layer->parameters()) result.push_back(parameter.grad());
  layer->end_window();
  result.push_back(layer->router->selection_bias().clone());
  EXPECT_FALSE(layer->window().load_E.defined());
  return result;
}

TEST(BalanceWindow, IsTheSameForOneEightAndFourTwos) {
  const auto whole = train_window(8), parts = train_window(2);
  expect_identical(whole[1], parts[1]);
  for (size_t i = 0; i < whole.size(); ++i) expect_close(parts[i], whole[i], 1e-12, 1e-13);
}

TEST(BalanceWindow, MovesTheBiasOncePerWindowTowardsTheIdleExperts) {
  const auto result = train_window(4);
  const Tensor load = result[1];
  expect_identical(result.back(), ((load.mean() - load).sign() * 0.01).to(at::kFloat));
}

TEST(BalanceWindow, OppositeCollapsesOfTwoLayersDoNotCancel) {
  MoELayerOptions options;
  options.balance({.aux_loss_weight = 1});
  BalanceSums concatenated;
  for (const int64_t favourite : {0, 1}) {
    TopKRouter router(kWidth, int64_t{2}, int64_t{1}, TopKRouterOptions().renormalise(false));
    const Tensor weight = at::zeros({2, kWidth}, at::kDouble);
    weight[favourite].fill_(10);
    router->weight.set_data(weight);
    MoELayer layer(router.ptr(), filled_bank(2).ptr(), options);
    layer->forward(at::ones({8, kWidth}, at::kDouble), {.training = true});
    EXPECT_NEAR(layer->window_loss().item<double>(), 2, 1e-12);
    concatenated.add(layer->window());
  }
  EXPECT_NEAR(aux_loss(concatenated).item<double>(), 1, 1e-12) << "what a loss over all layers at once would read";
}

TEST(BalanceWindow, EvaluationDoesNotCount) {
  MoELayer layer(filled(TopKRouter(kWidth, kNumBalanced, 2)).ptr(), filled_bank(kNumBalanced).ptr());
  layer->forward(ramp({8, kWidth}, 0.9, 0.1, at::kDouble));
  EXPECT_EQ(layer->window().num_tokens, 0);
  EXPECT_EQ(layer->last().num_tokens, 8);
}

TEST(BalanceWindow, ABiasMovesTheChoiceAndNeverTheGates) {
  TopKRouter router = filled(
      TopKRouter(kWidth, kNumBalanced, 1,
                 TopKRouterOptions().score(TopKRouterOptions::Score::Sigmoid).renormalise(false).selection_bias(true)));
  const Tensor x = ramp({6, kWidth}, 0.9, 0.1, at::kDouble);
  router->selection_bias()[3] = 10;
  const Routing routing = router->route(x, {});
  EXPECT_TRUE(routing.expert_A.eq(3).all().item<bool>());
  expect_identical(routing.gate_A, at::sigmoid(at::linear(x, router->weight)).select(1, 3));
  EXPECT_FALSE(router->selection_bias().requires_grad());
  EXPECT_EQ(router->parameters().size(), 1);
}

}  // namespace
}  // namespace lathe::nn
