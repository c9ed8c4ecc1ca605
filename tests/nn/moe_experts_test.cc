#include "lathe/nn/moe_experts.h"

#include <torch/csrc/autograd/autograd.h>

#include "lathe/nn/moe_activation.h"
#include "moe_testing.h"

namespace lathe::nn {
namespace {

using lathe::testing::expect_close;
using lathe::testing::expect_gradients;
using lathe::testing::expect_identical;
using testing::filled_bank;
using testing::gradients;
using testing::kHidden;
using testing::kWidth;
using testing::message_of;
using testing::ramp;
using testing::some_routing;

TEST(ExpertGroups, SortsAssignmentsStablyByExpert) {
  const ExpertGroups groups = ExpertGroups::of(some_routing());
  EXPECT_EQ(groups.offsets, (std::vector<int64_t>{0, 2, 2, 5}));
  expect_identical(groups.order_A, at::tensor({1, 3, 0, 2, 4}, at::kLong));
  expect_identical(groups.token_A, at::tensor({0, 3, 3, 2, 0}, at::kLong));
}

TEST(ExpertGroups, RefusesWhatIsOutOfRange) {
  Routing routing = some_routing();
  routing.expert_A = at::tensor({2, 0, 3, 0, 2}, at::kLong);
  EXPECT_EQ(message_of([&] { ExpertGroups::of(routing); }),
            "Routing: expected experts below 3 and tokens below 4, got expert 3 and token 2");
  routing.expert_A = at::tensor({2, 0}, at::kLong);
  EXPECT_EQ(message_of([&] { ExpertGroups::of(routing); }),
            "Routing: expected as many tokens and gates as experts = 2, got 5 and 5");
}

TEST(ExpertBank, GradientsEqualFiniteDifferencesWithDropoutAndBiases) {
  for (const auto activation : {ExpertActivation::SwiGLU, ExpertActivation::Gelu, ExpertActivation::GeluTanh}) {
    ExpertBank bank = filled_bank(3, activation, activation != ExpertActivation::SwiGLU);
    const Routing routing = some_routing();
    const Tensor x = ramp({4, kWidth}, 0.9, 0.1, at::kDouble).requires_grad_();
    std::vector<Tensor> inputs = bank->parameters();
    inputs.insert(inputs.end(), {x, routing.gate_A});
    expect_gradients([&] { return bank->forward(x, routing, {7, 0.4f}); }, inputs);
  }
}

// One assignment per token, to these of 3 experts.
Routing routing_to(const std::vector<int64_t>& experts, at::ScalarType type) {
  Routing routing;
  routing.num_tokens = static_cast<int64_t>(experts.size());
  routing.num_experts = 3;
  routing.token_A = at::arange(routing.num_tokens, at::kLong);
  routing.expert_A = at::tensor(experts, at::kLong);
  routing.gate_A = ramp({routing.num_tokens}, 0.8, 0.3, at::kDouble).to(type).requires_grad_();
  return routing;
}

// The first product moves into the room of a gradient (few rows), is overwritten where it lies (many, or most of them
// the last expert's), or stays, because the graph is kept. 37 columns end in a part of a vector.
TEST(ExpertBank, GradientsDoNotDependOnWhereTheFirstProductLies) {
  for (const std::vector<int64_t>& experts : {std::vector<int64_t>{2, 0, 2, 0, 2},
                                              {2, 2, 2, 2, 2, 2, 2},
                                              {0, 0, 0, 0, 0, 0, 0},
                                              {0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2}}) {
    for (const auto activation : {ExpertActivation::SwiGLU, ExpertActivation::Gelu}) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
        const Routing routing = routing_to(experts, type);
        ExpertBank bank(ExpertBankOptions(3, kWidth, type == at::kDouble ? kHidden : 37).activation(activation));
        double phase = 0;
        for (Tensor& parameter : bank->parameters())
          parameter.set_data(ramp(parameter.sizes(), 0.7, phase += 0.4, at::kDouble).to(type));
        const Tensor x = ramp({routing.num_tokens, kWidth}, 0.9, 0.1, at::kDouble).to(type).requires_grad_();
        std::vector<Tensor> inputs = bank->parameters();
        inputs.insert(inputs.end(), {x, routing.gate_A});
        if (type == at::kDouble) expect_gradients([&] { return bank->forward(x, routing, {7, 0.4f}); }, inputs);
        const Tensor y = bank->forward(x, routing, {7, 0.4f}), dy = ramp(y.sizes(), 1.3, 0.4, at::kDouble).to(type);
        const auto kept = torch::autograd::grad({y}, inputs, {dy}, /*retain_graph=*/true),
                   used_up = torch::autograd::grad({y}, inputs, {dy});
        for (size_t i = 0; i < inputs.size(); ++i) expect_identical(used_up[i], kept[i]);
      }
    }
  }
}

// float32 against float64, where the fused kernels and the composed operators meet; 37 columns end in a part of a
// vector.
TEST(ExpertBank, Float32KernelsEqualFloat64OnEveryInstructionSet) {
  for (const bool portable : {false, true}) {
    kernels::force_portable(portable);
    for (const auto activation : {ExpertActivation::SwiGLU, ExpertActivation::Gelu, ExpertActivation::GeluTanh}) {
      std::vector<std::vector<Tensor>> results;
      for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
        ExpertBank bank(
            ExpertBankOptions(3, 20, 37).activation(activation).bias(activation != ExpertActivation::SwiGLU));
        double phase = 0;
        for (Tensor& parameter : bank->parameters())
          parameter.set_data(ramp(parameter.sizes(), 0.7, phase += 0.4, at::kDouble).mul(0.3).to(type));
        const Routing routing = some_routing(type);
        const Tensor x = ramp({4, 20}, 0.9, 0.1, at::kDouble).to(type).requires_grad_();
        const Tensor y = bank->forward(x, routing, {7, 0.4f});
        (y * ramp(y.sizes(), 1.3, 0.4, at::kDouble).to(type)).sum().backward();
        std::vector<Tensor> result = {y, x.grad(), routing.gate_A.grad()};
        for (const Tensor& parameter : bank->parameters()) result.push_back(parameter.grad());
        results.push_back(std::move(result));
      }
      // Sums of at most 111 products of order 1 at 2^-24 each, and the kernels' own 3e-7.
      for (size_t i = 0; i < results[0].size(); ++i) expect_close(results[1][i], results[0][i], 1e-5, 2e-5);
    }
  }
  kernels::force_portable(false);
}

TEST(ExpertBank, FrozenBfloat16ExpertsActAsTheirRoundedWeights) {
  ExpertBank bank(ExpertBankOptions(3, kWidth, kHidden)), rounded(ExpertBankOptions(3, kWidth, kHidden));
  bank->initialise(4);
  rounded->initialise(4);
  for (size_t i = 0; i < 2; ++i) {
    const Tensor stored = bank->parameters()[i].to(at::kBFloat16);
    bank->parameters()[i].requires_grad_(false);
    (i == 0 ? bank->up_weight : bank->down_weight).set_data(stored);
    (i == 0 ? rounded->up_weight : rounded->down_weight).set_data(stored.to(at::kFloat));
  }
  const Tensor x = ramp({4, kWidth}).requires_grad_();
  const Tensor y = bank->forward(x, some_routing(at::kFloat));
  expect_identical(y, rounded->forward(x, some_routing(at::kFloat)));
  y.sum().backward();
  EXPECT_EQ(x.grad().scalar_type(), at::kFloat);
}

TEST(Swiglu, EqualsItsFormulaWithItsGradient) {
  const Tensor h = ramp({3, 22}, 0.9, 0.1) * 4;
  const Tensor again = h.detach().to(at::kDouble).requires_grad_();
  h.requires_grad_();
  const Tensor y = swiglu(h), expected = swiglu(again);
  // exp within 2 ulp and five roundings, relative to |h|² <= 16.
  expect_close(y, expected, 1e-6, 1e-6);
  y.sum().backward();
  expected.sum().backward();
  expect_close(h.grad(), again.grad(), 1e-6, 5e-6);
}

TEST(ExpertBank, RefusesBadShapes) {
  EXPECT_EQ(message_of([] { ExpertBank(ExpertBankOptions(0, 1, 1)); }),
            "ExpertBank: expected num_experts, in_features and hidden_features >= 1, got 0, 1 and 1");
  EXPECT_EQ(message_of([] { ExpertBank(ExpertBankOptions(2, 1, 1).bias(true)); }),
            "ExpertBank: expected SwiGLU experts without biases");
  ExpertBank bank = filled_bank(3);
  EXPECT_EQ(message_of([&] {
              bank->forward(ramp({4, 2}), some_routing());
            }),
            "ExpertBank: expected x [T, in_features = 5], got [4, 2]");
  EXPECT_EQ(message_of([&] {
              bank->forward(ramp({3, kWidth}), some_routing());
            }),
            "ExpertBank: expected a routing of 3 tokens to 3 experts, got one of 4 to 3");
}

}  // namespace
}  // namespace lathe::nn
