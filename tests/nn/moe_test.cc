#include "lathe/nn/moe.h"

#include "lathe/base/random.h"
#include "lathe/nn/checkpoint.h"
#include "lathe/nn/counter_tensors.h"
#include "moe_testing.h"

namespace lathe::nn {
namespace {

using lathe::testing::expect_close;
using lathe::testing::expect_gradients;
using lathe::testing::expect_identical;
using testing::dumb_mixture;
using testing::filled;
using testing::filled_bank;
using testing::gradients;
using testing::kHidden;
using testing::kWidth;
using testing::message_of;
using testing::ramp;
using Score = TopKRouterOptions::Score;

constexpr int64_t kTokens = 11, kExperts = 6;

// A router and the gates [T, E] that it must give, computed token by token from its weights.
struct RouterCase {
  const char* name;
  std::shared_ptr<RouterBase> (*make)();
  Tensor (*gates)(const RouterBase&, const Tensor& x, uint64_t key);
};

// The k largest of a vector by repeated search.
std::vector<int64_t> largest(const Tensor& row, int64_t k) {
  std::vector<int64_t> chosen;
  Tensor left = row.detach().clone();
  for (int64_t i = 0; i < k; ++i) {
    chosen.push_back(left.argmax().item<int64_t>());
    left[chosen.back()] = -INFINITY;
  }
  return chosen;
}

Tensor row_of_gates(const std::vector<int64_t>& chosen, const std::vector<Tensor>& gates) {
  Tensor row = at::zeros({kExperts}, at::kDouble);
  for (size_t i = 0; i < chosen.size(); ++i)
    row = row + gates[i] * at::one_hot(at::scalar_tensor(chosen[i], at::kLong), kExperts);
  return row;
}

template <typename F>
Tensor token_by_token(const Tensor& x, F gates_of) {
  std::vector<Tensor> rows;
  for (int64_t t = 0; t < x.size(0); ++t) rows.push_back(gates_of(t));
  return at::stack(rows);
}

Tensor softmax_gates(const RouterBase& router, const Tensor& x, int64_t k, bool renormalise) {
  return token_by_token(x, [&](int64_t t) {
    const Tensor p = at::softmax(at::matmul(router.weight, x[t]), 0);
    const auto chosen = largest(p, k);
    Tensor sum = at::zeros({}, at::kDouble);
    for (const int64_t e : chosen) sum = sum + p[e];
    std::vector<Tensor> gates;
    for (const int64_t e : chosen) gates.push_back(renormalise ? p[e] / sum : p[e]);
    return row_of_gates(chosen, gates);
  });
}

// DeepSeek-V3: 3 groups of 2, the best 2 groups, bias; gates s / Σ s * 2.5.
Tensor grouped_gates(const RouterBase& router, const Tensor& x) {
  const Tensor bias = router.selection_bias().to(at::kDouble);
  return token_by_token(x, [&](int64_t t) {
    const Tensor s = at::sigmoid(at::matmul(router.weight, x[t]));
    const Tensor biased = (s + bias).detach();
    const Tensor group_sums = at::stack({biased[0] + biased[1], biased[2] + biased[3], biased[4] + biased[5]});
    Tensor open = at::full({kExperts}, -INFINITY, at::kDouble);
    for (const int64_t g : largest(group_sums, 2)) open.narrow(0, 2 * g, 2).copy_(biased.narrow(0, 2 * g, 2));
    const auto chosen = largest(open, 2);
    const Tensor sum = s[chosen[0]] + s[chosen[1]];
    return row_of_gates(chosen, {s[chosen[0]] / sum * 2.5, s[chosen[1]] / sum * 2.5});
  });
}

Tensor noisy_gates(const RouterBase& router, const Tensor& x, uint64_t key) {
  const auto& noisy = dynamic_cast<const NoisyTopKRouterImpl&>(router);
  const Tensor noise = counter_normal({x.size(0), kExperts}, make_key(key, name_key("noise")));
  return token_by_token(x, [&](int64_t t) {
    const Tensor h = at::matmul(router.weight, x[t]) + noise[t] * at::softplus(at::matmul(noisy.noise_weight, x[t]));
    const auto chosen = largest(h, 2);
    const Tensor gates = at::softmax(at::stack({h[chosen[0]], h[chosen[1]]}), 0);
    return row_of_gates(chosen, {gates[0], gates[1]});
  });
}

Tensor expert_choice_gates(const RouterBase& router, const Tensor& x) {
  const Tensor p = at::softmax(at::matmul(x, router.weight.t()), 1);
  Tensor mask = at::zeros({x.size(0), kExperts}, at::kDouble);
  const auto capacity = static_cast<int64_t>(std::ceil(kTokens * 1.5 / kExperts));
  for (int64_t e = 0; e < kExperts; ++e) {
    for (const int64_t t : largest(p.select(1, e), capacity)) mask[t][e] = 1;
  }
  return p * mask;
}

Tensor random_gates(const RouterBase& /*router*/, const Tensor& x, uint64_t key) {
  const Tensor draws = counter_uniform({x.size(0), kExperts}, make_key(key, name_key("random router"))),
               half = at::full({}, 0.5, at::kDouble);
  return token_by_token(x, [&](int64_t t) { return row_of_gates(largest(draws[t], 2), {half, half}); });
}

TopKRouter top_k(int64_t k, TopKRouterOptions options = {}) { return filled(TopKRouter(kWidth, kExperts, k, options)); }

TopKRouter grouped_router() {
  TopKRouter router =
      top_k(2, TopKRouterOptions().score(Score::Sigmoid).selection_bias(true).num_groups(3).top_groups(2).scale(2.5));
  router->selection_bias().copy_(ramp({kExperts}, 2.1) * 0.3 - 1);  // s + b below 0: a group masked by 0 would win
  return router;
}

const RouterCase kRouters[] = {
    {"softmax_top2", [] { return std::shared_ptr<RouterBase>(top_k(2).ptr()); },
     [](const RouterBase& r, const Tensor& x, uint64_t) { return softmax_gates(r, x, 2, true); }},
    {"softmax_top3_not_renormalised",
     [] { return std::shared_ptr<RouterBase>(top_k(3, TopKRouterOptions().renormalise(false)).ptr()); },
     [](const RouterBase& r, const Tensor& x, uint64_t) { return softmax_gates(r, x, 3, false); }},
    {"softmax_after_top2",
     [] { return std::shared_ptr<RouterBase>(top_k(2, TopKRouterOptions().score(Score::SoftmaxOfTopK)).ptr()); },
     [](const RouterBase& r, const Tensor& x, uint64_t) { return softmax_gates(r, x, 2, true); }},
    {"switch_top1", [] { return std::shared_ptr<RouterBase>(top_k(1, TopKRouterOptions().renormalise(false)).ptr()); },
     [](const RouterBase& r, const Tensor& x, uint64_t) { return softmax_gates(r, x, 1, false); }},
    {"every_expert", [] { return std::shared_ptr<RouterBase>(top_k(kExperts).ptr()); },
     [](const RouterBase& r, const Tensor& x, uint64_t) { return at::softmax(at::matmul(x, r.weight.t()), 1); }},
    {"sigmoid_groups_bias", [] { return std::shared_ptr<RouterBase>(grouped_router().ptr()); },
     [](const RouterBase& r, const Tensor& x, uint64_t) { return grouped_gates(r, x); }},
    {"noisy_top2",
     [] { return std::shared_ptr<RouterBase>(filled(NoisyTopKRouter(kWidth, kExperts, int64_t{2})).ptr()); },
     noisy_gates},
    {"expert_choice",
     [] { return std::shared_ptr<RouterBase>(filled(ExpertChoiceRouter(kWidth, kExperts, 1.5)).ptr()); },
     [](const RouterBase& r, const Tensor& x, uint64_t) { return expert_choice_gates(r, x); }},
    {"random", [] { return std::shared_ptr<RouterBase>(RandomRouter(kWidth, kExperts, int64_t{2}).ptr()); },
     random_gates},
};

class EveryRouter : public ::testing::TestWithParam<RouterCase> {};
INSTANTIATE_TEST_SUITE_P(All, EveryRouter, ::testing::ValuesIn(kRouters),
                         [](const auto& info) { return std::string(info.param.name); });

Tensor tokens(int64_t count = kTokens) { return ramp({count, kWidth}, 0.9, 0.1, at::kDouble).requires_grad_(); }

constexpr uint64_t kPassKey = 5, kLayer = 2;

// The key that MoELayer gives its router.
uint64_t router_key() { return make_key(kPassKey, kLayer, name_key("moe")); }

TEST_P(EveryRouter, OutputsAndGradientsEqualALoopOverTokens) {
  MoELayer layer(GetParam().make(), filled_bank(kExperts).ptr());
  const Tensor x = tokens();
  std::vector<Tensor> inputs = {x};
  for (const Tensor& parameter : layer->parameters()) inputs.push_back(parameter);
  const Tensor y = layer->forward(x, {.training = true, .key = kPassKey}, kLayer);
  const auto by_hand = gradients(y, inputs);
  const auto& bank = dynamic_cast<const ExpertBankImpl&>(*layer->experts);
  const Tensor dumb = dumb_mixture(bank, x, GetParam().gates(*layer->router, x, router_key()));
  // Sums of at most 30 products of size below 10, in another order: 1e-12 is 100 times their rounding.
  expect_close(y, dumb, 1e-12, 1e-12);
  const auto expected = gradients(dumb, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) expect_close(by_hand[i], expected[i], 1e-11, 1e-11);
}

TEST_P(EveryRouter, GradientsEqualFiniteDifferences) {
  MoELayer layer(GetParam().make(), filled_bank(kExperts).ptr());
  const Tensor x = tokens(4);
  std::vector<Tensor> inputs = {x};
  for (const Tensor& parameter : layer->parameters()) inputs.push_back(parameter);
  expect_gradients([&] { return layer->forward(x, {.training = true, .key = kPassKey}, kLayer); }, inputs);
}

TEST_P(EveryRouter, CheckpointingChangesNeitherGradientsNorLoads) {
  const auto run = [&](Recompute policy) {
    MoELayerOptions options;
    options.expert_dropout(0.2).capacity_factor(1).balance({.aux_loss_weight = 0.1, .z_loss_weight = 0.1});
    MoELayer layer(GetParam().make(), filled_bank(kExperts).ptr(), options);
    const Tensor x = tokens();
    const Tensor y = checkpoint(
        [&layer](const std::vector<Tensor>& in) {
          return layer->forward(in[0], {.training = true, .key = kPassKey}, kLayer);
        },
        {x}, policy);
    std::vector<Tensor> result = {layer->window().load_E, layer->window_loss().detach()};
    ((y * ramp(y.sizes(), 1.3, 0.4, at::kDouble)).sum() + layer->window_loss()).backward();
    result.push_back(layer->window().load_E);
    result.push_back(x.grad());
    for (const Tensor& parameter : layer->parameters()) result.push_back(parameter.grad());
    return result;
  };
  const auto plain = run(Recompute::None), again = run(Recompute::Full);
  expect_identical(plain[0], plain[2]);
  for (size_t i = 0; i < plain.size(); ++i) expect_identical(again[i], plain[i]);
}

TEST(MoELayer, IsEquivariantToPermutationsOfTokens) {
  MoELayer layer(top_k(2).ptr(), filled_bank(kExperts).ptr());
  const Tensor x = tokens().detach(), order = at::tensor(random_permutation(kTokens, 3), at::kLong);
  expect_close(layer->forward(x.index_select(0, order)), layer->forward(x).index_select(0, order), 1e-14, 1e-14);
}

TEST(MoELayer, WithOneExpertIsTheDenseLayer) {
  for (const auto activation : {ExpertActivation::SwiGLU, ExpertActivation::Gelu, ExpertActivation::GeluTanh}) {
    ExpertBank bank = filled_bank(1, activation, activation != ExpertActivation::SwiGLU);
    MoELayer layer(filled(TopKRouter(kWidth, 1, 1)).ptr(), bank.ptr());
    const Tensor x = tokens();
    std::vector<Tensor> inputs = bank->parameters();
    inputs.push_back(x);
    const Tensor y = layer->forward(x), dense = dumb_mixture(*bank, x, at::ones({kTokens, 1}, at::kDouble));
    expect_close(y, dense, 1e-13, 1e-13);
    const auto actual = gradients(y, inputs), expected = gradients(dense, inputs);
    for (size_t i = 0; i < inputs.size(); ++i) expect_close(actual[i], expected[i], 1e-12, 1e-12);
  }
}

TEST(MoELayer, GivesEmptyExpertsZeroGradientsAndNoTokensNoRows) {
  TopKRouter router = top_k(1, TopKRouterOptions().renormalise(false));
  router->weight.set_data(at::zeros({kExperts, kWidth}, at::kDouble));  // ties: all to expert 0
  MoELayer layer(router.ptr(), filled_bank(kExperts).ptr());
  const Tensor x = tokens();
  layer->forward(x, {.training = true}).sum().backward();
  expect_identical(layer->window().load_E, at::tensor({11.0, 0.0, 0.0, 0.0, 0.0, 0.0}, at::kDouble));
  const auto& bank = dynamic_cast<const ExpertBankImpl&>(*layer->experts);
  EXPECT_GT(bank.up_weight.grad()[0].abs().max().item<double>(), 0);
  EXPECT_EQ(bank.up_weight.grad().narrow(0, 1, 5).abs().max().item<double>(), 0);
  EXPECT_EQ(bank.down_weight.grad().narrow(0, 1, 5).abs().max().item<double>(), 0);
  EXPECT_EQ(layer->forward(x.detach().narrow(0, 0, 0)).sizes(), at::IntArrayRef({0, kWidth}));
}

TEST(MoELayer, DroppedTokensContributeExactlyZero) {
  TopKRouter router = top_k(1, TopKRouterOptions().renormalise(false));
  router->weight.set_data(at::zeros({kExperts, kWidth}, at::kDouble));
  MoELayerOptions options;
  options.capacity_factor(1.5);  // ceil(11 * 1.5 / 6) = 3 places, all tokens want expert 0
  MoELayer layer(router.ptr(), filled_bank(kExperts).ptr(), options);
  const Tensor x = tokens();
  const Tensor y = layer->forward(x, {.training = true});
  y.sum().backward();
  for (const Tensor& tensor : {y.detach(), x.grad()}) {
    EXPECT_GT(tensor.narrow(0, 0, 3).abs().min().item<double>(), 0);
    EXPECT_EQ(tensor.narrow(0, 3, 8).abs().max().item<double>(), 0);
  }
  EXPECT_EQ(layer->window().num_dropped, 8);
  EXPECT_EQ(layer->window().num_unserved, 8);
  EXPECT_GT(layer->forward(x).abs().min().item<double>(), 0) << "evaluation drops nothing";
}

TEST(DropOverCapacity, KeepsFirstChoicesLargeGatesOrADraw) {
  Routing routing;
  routing.num_tokens = 3;
  routing.num_experts = 2;
  routing.token_A = at::tensor({0, 0, 1, 1, 2, 2}, at::kLong);
  routing.expert_A = at::tensor({1, 0, 0, 1, 0, 1}, at::kLong);
  routing.gate_A = at::tensor({0.9, 0.1, 0.6, 0.4, 0.7, 0.3}, at::kDouble);
  // ceil(6 * 0.5 / 2) = 2 places each.
  const auto kept = [&](DropOrder order, uint64_t key) { return drop_over_capacity(routing, 0.5, order, key).gate_A; };
  expect_identical(kept(DropOrder::Position, 0), at::tensor({0.9, 0.6, 0.4, 0.7}, at::kDouble));
  expect_identical(kept(DropOrder::Probability, 0), at::tensor({0.9, 0.6, 0.4, 0.7}, at::kDouble));
  routing.gate_A = at::tensor({0.2, 0.8, 0.6, 0.4, 0.7, 0.3}, at::kDouble);
  expect_identical(kept(DropOrder::Position, 0), at::tensor({0.2, 0.6, 0.4, 0.7}, at::kDouble));
  expect_identical(kept(DropOrder::Probability, 0), at::tensor({0.8, 0.4, 0.7, 0.3}, at::kDouble));
  expect_identical(kept(DropOrder::Random, 5), kept(DropOrder::Random, 5));
  bool differs = false;
  for (uint64_t key = 0; key < 8; ++key) {
    EXPECT_EQ(kept(DropOrder::Random, key).numel(), 4);
    differs = differs || !at::equal(kept(DropOrder::Random, key), kept(DropOrder::Random, 5));
  }
  EXPECT_TRUE(differs);
}

TEST(TopKRouter, JitterScalesItsInputInTrainingOnly) {
  TopKRouter plain = top_k(2), jittered = top_k(2, TopKRouterOptions().jitter(0.25));
  const Tensor x = tokens().detach();
  expect_identical(jittered->route(x, {false, 4}).logits_TE, plain->route(x, {}).logits_TE);
  const Tensor draws = counter_uniform(x.sizes(), make_key(uint64_t{4}, name_key("jitter")));
  expect_close(jittered->route(x, {true, 4}).logits_TE, plain->route(x * (0.75 + 0.5 * draws), {}).logits_TE, 1e-13,
               1e-13);
}

TEST(RandomRouter, DrawsDistinctExpertsUniformlyFromItsKey) {
  RandomRouter router(kWidth, kExperts, int64_t{2});
  const Tensor x = ramp({6000, kWidth}, 0.9, 0.1, at::kDouble);
  const Routing routing = router->route(x, {true, 3});
  expect_identical(routing.gate_A, at::full({12000}, 0.5, at::kDouble));
  const Tensor pairs = routing.expert_A.view({6000, 2});
  EXPECT_FALSE(pairs.select(1, 0).eq(pairs.select(1, 1)).any().item<bool>());
  // 2000 expected, standard deviation √(6000 · 1/3 · 2/3) = 36.5; five of them.
  expect_close(BalanceSums::of(routing, routing).load_E, at::full({kExperts}, 2000, at::kDouble), 0, 183);
  EXPECT_TRUE(at::equal(routing.expert_A, router->route(x, {true, 3}).expert_A));
  EXPECT_FALSE(at::equal(routing.expert_A, router->route(x, {true, 4}).expert_A));
}

TEST(ExpertChoiceRouter, LoadsAreExactlyEqual) {
  ExpertChoiceRouter router = filled(ExpertChoiceRouter(kWidth, kExperts, 1.5));
  const Routing routing = router->route(tokens().detach(), {});
  expect_identical(BalanceSums::of(routing, routing).load_E, at::full({kExperts}, 3, at::kDouble));
}

TEST(MoELayer, RoutesNoPaddingAndCountsNone) {
  MoELayerOptions options;
  options.capacity_factor(1).balance({.aux_loss_weight = 1, .z_loss_weight = 1});
  MoELayer padded(top_k(2).ptr(), filled_bank(kExperts).ptr(), options),
      alone(top_k(2).ptr(), filled_bank(kExperts).ptr(), options);
  const Tensor x = tokens().detach(), counted = at::arange(kTokens) < 7;
  const Tensor y = padded->forward(x, {.training = true}, 0, counted);
  expect_identical(y.narrow(0, 0, 7), alone->forward(x.narrow(0, 0, 7), {.training = true}));
  EXPECT_EQ(y.narrow(0, 7, 4).abs().max().item<double>(), 0);
  expect_identical(padded->window_loss(), alone->window_loss());
}

TEST(MoELayer, AddsTheSharedExpertThroughItsGate) {
  MoELayer layer(top_k(2).ptr(), filled_bank(kExperts).ptr());
  const Tensor x = tokens();
  const Tensor routed = layer->forward(x);
  GatedMLP shared(kWidth, 4);
  layer->add_shared_expert("shared_expert", shared.ptr(), true);
  for (Tensor& parameter : shared->parameters()) parameter.set_data(ramp(parameter.sizes(), 0.6, 0.1, at::kDouble));
  const Tensor gate = layer->named_parameters()["shared_expert_gate.weight"];
  gate.set_data(ramp(gate.sizes(), 0.6, 0.3, at::kDouble));
  const auto weight = [&](LinearSlot& slot) { return slot->dense_weight(); };
  const Tensor dense =
      at::linear(at::silu(at::linear(x, weight(shared->gate_proj))) * at::linear(x, weight(shared->up_proj)),
                 weight(shared->down_proj));
  expect_close(layer->forward(x), routed + at::sigmoid(at::linear(x, gate)) * dense, 1e-13, 1e-13);
}

TEST(MoELayer, AddsAnUngatedSharedExpertWithItsGradients) {
  for (const Gelu kind : {Gelu::Erf, Gelu::Tanh}) {
    MoELayer layer(top_k(2).ptr(), filled_bank(kExperts).ptr());
    const Tensor x = tokens().requires_grad_();
    const Tensor routed = layer->forward(x).detach();
    GeluMLP shared(kWidth, 4, kind);
    layer->add_shared_expert("shared_experts", shared.ptr(), false);
    std::vector<Tensor> inputs = {x};
    for (Tensor& parameter : shared->parameters()) {
      parameter.set_data(ramp(parameter.sizes(), 0.6, 0.1, at::kDouble));
      inputs.push_back(parameter.requires_grad_());
    }
    const Tensor hidden = at::linear(x, shared->up_proj->dense_weight(), shared->up_proj->bias());
    const Tensor dense = at::linear(at::gelu(hidden, kind == Gelu::Tanh ? "tanh" : "none"),
                                    shared->down_proj->dense_weight(), shared->down_proj->bias());
    expect_close(layer->forward(x), routed + dense, 1e-13, 1e-13);
    expect_gradients([&] { return layer->forward(x); }, inputs);
  }
}

TEST(MoELayer, RefusesBadOptions) {
  const auto bank = filled_bank(4).ptr();
  const auto router = filled(TopKRouter(kWidth, 4, 2)).ptr();
  EXPECT_EQ(message_of([&] { TopKRouter(kWidth, 4, 5); }), "TopKRouter: expected 1 <= top_k <= num_experts = 4, got 5");
  EXPECT_EQ(message_of([&] { TopKRouter(kWidth, 4, 1); }),
            "TopKRouter: expected top_k >= 2 with renormalised gates, got 1: the gate would always be 1 and the router "
            "would get no gradient");
  EXPECT_EQ(message_of([&] { TopKRouter(kWidth, 4, 2, TopKRouterOptions().num_groups(3)); }),
            "TopKRouter: expected num_groups that divide num_experts = 4, got 3");
  EXPECT_EQ(message_of([&] { TopKRouter(kWidth, 4, 3, TopKRouterOptions().num_groups(2)); }),
            "TopKRouter: expected top_k <= 2, the experts of 1 groups, got 3");
  EXPECT_EQ(message_of([&] { ExpertChoiceRouter(kWidth, 4, 0.0); }),
            "ExpertChoiceRouter: expected 0 < capacity_factor <= num_experts = 4, got 0");
  EXPECT_EQ(message_of([&] { drop_over_capacity(router->route(tokens(), {}), 0, DropOrder::Position, 0); }),
            "drop_over_capacity: expected a capacity_factor above 0, got 0");
  EXPECT_EQ(message_of([&] { MoELayer(router, filled_bank(3).ptr()); }),
            "MoELayer: expected a router and a bank of the same experts and width, got 4 of 5 and 3 of 5");
  EXPECT_EQ(message_of([&] { MoELayer(router, bank, MoELayerOptions().capacity_factor(-1)); }),
            "MoELayer: expected capacity factors >= 0, got -1");
  EXPECT_EQ(message_of([&] { MoELayer(router, bank, MoELayerOptions().expert_dropout(1)); }),
            "MoELayer: expected expert_dropout in [0, 1), got 1");
  EXPECT_EQ(message_of([&] { MoELayer(router, bank, MoELayerOptions().balance({.bias_update_rate = 0.1})); }),
            "MoELayer: expected a router with a selection bias where bias_update_rate is not 0, got TopKRouter");
  MoELayer layer(router, bank);
  EXPECT_EQ(message_of([&] {
              layer->forward(ramp({2, 4}));
            }),
            "MoELayer: expected x [..., in_features = 5], got [2, 4]");
}

}  // namespace
}  // namespace lathe::nn
