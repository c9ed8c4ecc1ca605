#include "lathe/nn/lora.h"

#include <cmath>

#include "tensor_expect.h"

namespace lathe::nn {
namespace {

using testing::expect_close;
using testing::expect_gradients;
using testing::expect_identical;
using testing::ramp;

// A LoRALinear with filled tensors of one dtype; B not zero.
LoRALinear filled_lora(int64_t in, int64_t out, LoRALinearOptions options, at::ScalarType dtype = at::kDouble,
                       double phase = 0) {
  Linear base(in, out);
  base->weight.set_data(ramp({out, in}, 0.7, phase, dtype));
  base->bias().set_data(ramp({out}, 0.3, phase, dtype));
  LoRALinear lora(base.ptr(), options);
  lora->lora_A->weight.set_data(ramp({options.rank(), in}, 0.9, phase, dtype));
  lora->lora_B->weight.set_data(ramp({out, options.rank()}, 1.1, phase, dtype));
  return lora;
}

Tensor naive(LoRALinearImpl& lora, const Tensor& x) {
  const Tensor base =
      at::linear(x, lora.base_layer->dense_weight().to(x.scalar_type()), lora.bias().to(x.scalar_type()));
  return base + at::linear(at::linear(x, lora.lora_A->weight), lora.lora_B->weight) * lora.scaling();
}

TEST(LoRALinear, EqualsFrozenMapBeforeFirstStep) {
  torch::nn::Linear torch_linear(32, 16);
  const Tensor x = ramp({3, 5, 32});
  Linear frozen(torch_linear);
  const Tensor expected = frozen->forward(x);
  LoRALinear lora(torch_linear, LoRALinearOptions(4, 8));
  expect_identical(lora->forward(x), expected);
}

TEST(LoRALinear, InitialisesAUniformlyWithinTheKaimingBoundAndBToZero) {
  LoRALinear lora(torch::nn::Linear(256, 16), LoRALinearOptions(64, 8));
  // kaiming_uniform(a = √5) of a [rank, in] matrix is U(±1/√in): its standard deviation is 1/√(3 in).
  const double bound = 1 / std::sqrt(256.0);
  const Tensor A = lora->lora_A->weight;
  EXPECT_LE(A.abs().max().item<double>(), bound);
  EXPECT_NEAR(A.std().item<double>(), bound / std::sqrt(3.0), 4 * bound / std::sqrt(2.0 * 64 * 256));
  EXPECT_EQ(lora->lora_B->weight.abs().max().item<double>(), 0);
}

TEST(LoRALinear, HasAGradientForBButNotForAAtInitialisation) {
  LoRALinear lora(torch::nn::Linear(8, 6), LoRALinearOptions(2, 4));
  lora->forward(ramp({5, 8})).square().sum().backward();
  EXPECT_GT(lora->lora_B->weight.grad().abs().max().item<double>(), 0);
  EXPECT_EQ(lora->lora_A->weight.grad().abs().max().item<double>(), 0);
  EXPECT_FALSE(lora->base_layer->parameters()[0].grad().defined());
}

TEST(LoRALinear, GradientsEqualFiniteDifferencesAndTheNaiveFormula) {
  LoRALinear lora = filled_lora(5, 4, LoRALinearOptions(3, 6));
  const Tensor x = ramp({2, 3, 5}, 0.5, 0.2, at::kDouble).requires_grad_();
  const std::vector<Tensor> inputs = {x, lora->lora_A->weight, lora->lora_B->weight};
  expect_gradients([&] { return lora->forward(x); }, inputs);
  std::vector<Tensor> by_hand;
  for (const Tensor& input : inputs) by_hand.push_back(input.grad().clone());
  for (const Tensor& input : inputs) input.mutable_grad().reset();
  const Tensor y = naive(*lora, x);
  expect_close(lora->forward(x), y, 1e-12, 1e-12);
  (y * ramp(y.sizes(), 1.3, 0.4, at::kDouble)).sum().backward();
  for (size_t i = 0; i < inputs.size(); ++i) expect_close(by_hand[i], inputs[i].grad(), 1e-12, 1e-12);
}

TEST(LoRALinear, ReplaysItsDropoutMaskInBackward) {
  LoRALinear lora = filled_lora(5, 4, LoRALinearOptions(3, 6).dropout(0.4));
  const Tensor x = ramp({6, 5}, 0.5, 0.2, at::kDouble).requires_grad_();
  const std::vector<Tensor> inputs = {x, lora->lora_A->weight, lora->lora_B->weight};
  expect_gradients(
      [&] {
        const DropoutStream stream(7);
        return lora->forward(x);
      },
      inputs);
}

TEST(LoRALinear, DropsOnlyTheInputOfAAndOnlyInTraining) {
  LoRALinear lora = filled_lora(64, 4, LoRALinearOptions(3, 6).dropout(0.5), at::kFloat);
  const Tensor x = ramp({6, 64});
  Tensor first;
  {
    const DropoutStream stream(7);
    first = lora->forward(x);
    EXPECT_FALSE(at::equal(first, lora->forward(x))) << "each forward draws its own mask";
  }
  {
    const DropoutStream stream(7);
    expect_identical(lora->forward(x), first);
  }
  lora->eval();
  expect_close(lora->forward(x), naive(*lora, x), 1e-5, 1e-5);
  lora->lora_B->weight.set_data(at::zeros({4, 3}));
  lora->train();
  expect_identical(lora->forward(x), lora->base_layer->forward(x));
}

TEST(LoRALinear, ScalesByAlphaOverRankOrItsRoot) {
  EXPECT_DOUBLE_EQ(filled_lora(4, 4, LoRALinearOptions(4, 6))->scaling(), 1.5);
  EXPECT_DOUBLE_EQ(filled_lora(4, 4, LoRALinearOptions(4, 6).rank_stabilised(true))->scaling(), 3);
}

TEST(LoRALinear, MergedEqualsUnmergedAndUnmergeRestores) {
  LoRALinear lora = filled_lora(16, 8, LoRALinearOptions(4, 8), at::kFloat);
  const Tensor x = ramp({10, 16});
  const Tensor weight = lora->base_layer->dense_weight().clone();
  const Tensor unmerged = lora->forward(x);
  lora->merge();
  // 16 products of magnitude up to 1 + update (up to 8): eps_f32 * 16 * 10.
  expect_close(lora->forward(x), unmerged, 0, 2e-5);
  EXPECT_FALSE(lora->active());
  lora->unmerge();
  expect_close(lora->base_layer->dense_weight(), weight, 0, 2e-6);
  expect_close(lora->forward(x), unmerged, 0, 2e-5);
}

TEST(LoRALinear, DisabledIsTheFrozenMap) {
  LoRALinear lora = filled_lora(16, 8, LoRALinearOptions(4, 8), at::kFloat);
  const Tensor x = ramp({10, 16});
  lora->set_enabled(false);
  expect_identical(lora->forward(x), lora->base_layer->forward(x));
}

TEST(LoRALinear, KeepsTheDtypeOfABfloat16Input) {
  LoRALinear lora = filled_lora(16, 8, LoRALinearOptions(4, 8), at::kFloat);
  lora->base_layer->as<Linear>()->weight.set_data(lora->base_layer->dense_weight().to(at::kBFloat16));
  lora->bias().set_data(lora->bias().to(at::kBFloat16));
  const Tensor x = ramp({10, 16}).to(at::kBFloat16).requires_grad_();
  const Tensor y = lora->forward(x);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  // Four roundings (product, bias, update, reference) of half a bfloat16 ulp, 2⁻⁴ for magnitudes from 16 to 32.
  expect_close(y, naive(*lora, x.detach().to(at::kFloat)).to(at::kBFloat16), 0, 0.25);
  y.sum().backward();
  EXPECT_EQ(x.grad().scalar_type(), at::kBFloat16);
  EXPECT_EQ(lora->lora_A->weight.grad().scalar_type(), at::kFloat);
}

TEST(LoRALinear, RefusesBadOptionsAndMisuse) {
  const auto message = [](auto action) {
    try {
      action();
    } catch (const c10::ValueError& error) {
      return std::string(error.what_without_backtrace());
    }
    return std::string("nothing was thrown");
  };
  const torch::nn::Linear base(4, 4);
  EXPECT_EQ(message([&] { LoRALinear(base, LoRALinearOptions(0, 1)); }), "LoRALinear: expected rank >= 1, got 0");
  EXPECT_EQ(message([&] { LoRALinear(base, LoRALinearOptions(1, 0)); }), "LoRALinear: expected alpha > 0, got 0");
  EXPECT_EQ(message([&] { LoRALinear(base, LoRALinearOptions(1, 1).dropout(1)); }),
            "LoRALinear: expected dropout in [0, 1), got 1");
  LoRALinear lora(base, LoRALinearOptions(1, 1));
  EXPECT_EQ(message([&] { lora->unmerge(); }), "LoRALinear: expected a merged adapter, got an unmerged one");
  EXPECT_EQ(message([&] { lora->forward(ramp({2, 3})); }), "LoRALinear: expected x [..., in_features = 4], got [2, 3]");
  LoRALinear nested(lora.ptr(), LoRALinearOptions(1, 1));
  EXPECT_EQ(message([&] { nested->merge(); }), "LoRALinear: expected a dense base_layer to merge into, got LoRALinear");
}

TEST(LoRALinear, WrapsALoRALinearAsItsFrozenBase) {
  LoRALinear inner = filled_lora(5, 4, LoRALinearOptions(2, 2));
  LoRALinear outer(inner.ptr(), LoRALinearOptions(3, 3));
  outer->lora_A->weight.set_data(ramp({3, 5}, 0.2, 0, at::kDouble));
  outer->lora_B->weight.set_data(ramp({4, 3}, 0.4, 0, at::kDouble));
  const Tensor x = ramp({3, 5}, 0.5, 0.2, at::kDouble).requires_grad_();
  expect_gradients([&] { return outer->forward(x); }, {x, outer->lora_A->weight, outer->lora_B->weight});
  EXPECT_FALSE(inner->lora_A->weight.requires_grad());
}

TEST(JointForward, EqualsTheLayersOneByOneWithTheirGradients) {
  LoRALinear query = filled_lora(6, 4, LoRALinearOptions(2, 4), at::kDouble, 0.1),
             value = filled_lora(6, 5, LoRALinearOptions(3, 4), at::kDouble, 0.2);
  Linear key(6, 3);
  key->weight.set_data(ramp({3, 6}, 0.7, 0, at::kDouble));
  key->bias().set_data(ramp({3}, 0.7, 0, at::kDouble));
  for (Tensor& parameter : key->parameters()) parameter.requires_grad_(false);
  const Tensor x = ramp({7, 6}, 0.5, 0.2, at::kDouble).requires_grad_();
  const auto joint = [&] { return joint_forward(x, {query.get(), key.get(), value.get()}); };
  expect_close(joint(), at::cat({query->forward(x), key->forward(x), value->forward(x)}, -1), 1e-12, 1e-12);
  expect_gradients(joint,
                   {x, query->lora_A->weight, query->lora_B->weight, value->lora_A->weight, value->lora_B->weight});
  // A layer that trains its own weights takes the plain road.
  for (Tensor& parameter : key->parameters()) parameter.requires_grad_(true);
  expect_gradients(joint, {x, query->lora_A->weight, key->weight});
}

}  // namespace
}  // namespace lathe::nn
