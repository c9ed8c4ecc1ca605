#include "lathe/nn/linear.h"

#include "lathe/nn/gemm.h"
#include "lathe/nn/lora.h"
#include "tensor_expect.h"

namespace lathe::nn {
namespace {

using testing::expect_identical;
using testing::ramp;

std::shared_ptr<LinearImpl> filled_linear(int64_t in, int64_t out) {
  auto linear = Linear(in, out).ptr();
  linear->weight.set_data(ramp({out, in}));
  linear->bias().set_data(ramp({out}, 0.3));
  return linear;
}

class TwoSlots : public SlottedModule {
 public:
  TwoSlots()
      : SlottedModule("TwoSlots"),
        up(register_linear("up", filled_linear(3, 5))),
        down(register_linear("down", filled_linear(5, 3))) {}
  Tensor forward(const Tensor& x) { return down(up(x)); }
  LinearSlot up, down;
};

class Tree : public torch::nn::Module {
 public:
  Tree() : torch::nn::Module("Tree") { block = register_module("block", std::make_shared<TwoSlots>()); }
  std::shared_ptr<TwoSlots> block;
};

TEST(LinearSlot, ReplacingChangesWhatForwardCalls) {
  TwoSlots module;
  const Tensor x = ramp({2, 3});
  const Tensor before = module.forward(x);
  auto other = filled_linear(3, 5);
  other->weight.set_data(other->weight * 2);
  module.up.replace(other);
  EXPECT_FALSE(at::equal(module.forward(x), before));
  EXPECT_EQ(module.named_children()["up"].get(), other.get());
}

TEST(LinearSlot, RefusesALayerOfOtherSizes) {
  TwoSlots module;
  try {
    module.up.replace(filled_linear(5, 3));
    ADD_FAILURE() << "nothing was thrown";
  } catch (const c10::ValueError& error) {
    EXPECT_STREQ(error.what_without_backtrace(), "up: expected a layer of 3 -> 5, got 5 -> 3");
  }
}

TEST(NamedSlots, GivesDottedPathsInRegistrationOrder) {
  const Tree tree;
  const auto slots = named_slots(tree);
  ASSERT_EQ(slots.size(), 2u);
  EXPECT_EQ(slots[0].path, "block.up");
  EXPECT_EQ(slots[1].path, "block.down");
  EXPECT_EQ(named_slots(*tree.block)[1].path, "down");
}

TEST(Hollow, HasAShapeButNoStorageUntilDataIsSet) {
  Linear linear(1000, 1000);
  EXPECT_TRUE(is_hollow(linear->weight));
  EXPECT_LE(linear->weight.storage().nbytes(), 8u);
  EXPECT_TRUE(linear->forward(ramp({1, 1000})).isnan().all().item<bool>());
  linear->weight.set_data(ramp({1000, 1000}));
  EXPECT_FALSE(is_hollow(linear->weight));
}

TEST(Linear, SharesTheParametersOfATorchLayer) {
  torch::nn::Linear torch_linear(4, 3);
  Linear linear(torch_linear);
  const Tensor x = ramp({2, 4});
  testing::expect_close(linear->forward(x), torch_linear->forward(x), 1e-6, 1e-6);
  torch_linear->weight.set_data(ramp({3, 4}));
  testing::expect_close(linear->forward(x), torch_linear->forward(x), 1e-6, 1e-6);
}

TEST(Linear, RefusesAnInputOfAnotherWidth) {
  Linear linear(64, 8);
  try {
    linear->forward(ramp({2, 10, 32}));
    ADD_FAILURE() << "nothing was thrown";
  } catch (const c10::ValueError& error) {
    EXPECT_STREQ(error.what_without_backtrace(), "Linear: expected x [..., in_features = 64], got [2, 10, 32]");
  }
}

TEST(Linear, ComputesWithABfloat16WeightAsIfItWereFloat32) {
  const auto linear = filled_linear(6, 4), rounded = filled_linear(6, 4);
  rounded->weight.set_data(linear->weight.to(at::kBFloat16).to(at::kFloat));
  linear->weight.requires_grad_(false);
  linear->weight.set_data(linear->weight.to(at::kBFloat16));
  linear->set_precision({at::kBFloat16, at::kFloat});
  const auto run = [](LinearImpl& layer) {
    const Tensor x = ramp({3, 6}, 0.5).clone().requires_grad_();
    const Tensor y = layer.forward(x);
    (y * ramp({3, 4}, 1.3)).sum().backward();
    return std::make_pair(y.detach(), x.grad());
  };
  const auto [y, dx] = run(*linear);
  const auto [expected_y, expected_dx] = run(*rounded);
  expect_identical(y, expected_y);
  expect_identical(dx, expected_dx);
}

TEST(Linear, TrainsAFloat32MasterThatProductsSeeRounded) {
  const auto linear = filled_linear(6, 4);
  linear->weight.requires_grad_(true);
  linear->set_precision({at::kBFloat16, at::kFloat});
  const Tensor x = ramp({3, 6}, 0.5), grad = ramp({3, 4}, 1.3);
  const Tensor y = linear->forward(x);
  const Tensor rounded = linear->weight.detach().to(at::kBFloat16).to(at::kFloat);
  expect_identical(y, gemm(x, rounded.t()) + linear->bias());
  (y * grad).sum().backward();
  EXPECT_EQ(linear->weight.grad().scalar_type(), at::kFloat);
  testing::expect_close(linear->weight.grad(), grad.t().mm(x), 1e-6, 1e-6);
}

// Without oneDNN they are multiplied in float32.
struct BFloat16Linear : ::testing::TestWithParam<bool> {
  BFloat16Linear() { at::globalContext().setUserEnabledMkldnn(GetParam()); }
  ~BFloat16Linear() override { at::globalContext().setUserEnabledMkldnn(true); }
};
INSTANTIATE_TEST_SUITE_P(OneDnn, BFloat16Linear, ::testing::Bool());

TEST_P(BFloat16Linear, MultipliesWithinItsRounding) {
  const auto linear = filled_linear(64, 8);
  linear->weight.requires_grad_(true);
  const Tensor x = ramp({5, 64}, 0.5).clone().requires_grad_();
  const Tensor exact = linear->forward(x).detach();
  linear->set_precision({at::kBFloat16, at::kBFloat16});
  const Tensor y = linear->forward(x);
  EXPECT_EQ(y.scalar_type(), at::kFloat);
  // Each of 64 products of values up to 1 has three roundings of 2⁻⁹; their errors add up like a random walk.
  testing::expect_close(y, exact, 0, 0.1);
  EXPECT_FALSE(at::equal(y, exact));
  y.sum().backward();
  EXPECT_EQ(x.grad().scalar_type(), at::kFloat);
  EXPECT_EQ(linear->weight.grad().scalar_type(), at::kFloat);
}

}  // namespace
}  // namespace lathe::nn
