#include "lathe/nn/nf4.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "lathe/nn/checkpoint.h"
#include "lathe/nn/lora.h"
#include "tensor_expect.h"

namespace lathe::nn {
namespace {

using lathe::testing::expect_close;
using ::testing::HasSubstr;

Tensor waves(at::IntArrayRef shape, double frequency) { return lathe::testing::ramp(shape, frequency, 0.3); }

NF4Linear quantised(int64_t in, int64_t out, NF4LinearOptions options = {}, bool bias = false) {
  NF4Linear layer(in, out, bias, options);
  layer->quantize(waves({out, in}, 0.7137) * 0.05);
  if (bias) layer->named_parameters()["bias"].set_data(waves({out}, 0.4));
  return layer;
}

// Sums of k products of float32 differ from the exact ones by at most k eps/2 Σ|x w|; twice that for two orders.
void expect_product(const Tensor& actual, const Tensor& x, const Tensor& w) {
  const Tensor exact = at::mm(x.to(at::kDouble), w.to(at::kDouble));
  const Tensor bound =
      at::mm(x.abs().to(at::kDouble), w.abs().to(at::kDouble)) * (static_cast<double>(x.size(1)) * 0x1p-24);
  const Tensor outside = ((actual.to(at::kDouble) - exact).abs() > bound).sum();
  EXPECT_EQ(outside.item<int64_t>(), 0) << (actual.to(at::kDouble) - exact).abs().max();
}

struct Case {
  int64_t rows, in, out, blocksize;
  bool double_quant;
  quant::QuantType type;
};

class NF4Products : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Shapes, NF4Products,
                         ::testing::Values(Case{1, 64, 2, 64, false, quant::QuantType::NF4},
                                           Case{3, 100, 7, 64, true, quant::QuantType::NF4},
                                           Case{8, 33, 5, 32, false, quant::QuantType::FP4},
                                           Case{9, 130, 70, 64, true, quant::QuantType::NF4},
                                           Case{50, 5000, 150, 4096, true, quant::QuantType::NF4},
                                           Case{20, 1, 1, 64, false, quant::QuantType::NF4}));

TEST_P(NF4Products, EqualThoseOfTheDecodedWeightBothWays) {
  const Case c = GetParam();
  const auto options = NF4LinearOptions().type(c.type).blocksize(c.blocksize).double_quant(c.double_quant);
  NF4Linear layer = quantised(c.in, c.out, options);
  const Tensor w = layer->dense_weight();
  Tensor x = waves({c.rows, c.in}, 0.31).requires_grad_(true);
  const Tensor grad = waves({c.rows, c.out}, 0.17);
  const Tensor y = layer->forward(x);
  expect_product(y.detach(), x.detach(), w.t());
  y.backward(grad);
  expect_product(x.grad(), grad, w);
  Tensor twice = x.grad().clone();
  layer->frozen_input_gradient(grad, twice, /*accumulate=*/true);
  expect_product(twice - x.grad(), grad, w);
}

TEST(NF4Linear, GivesTheSpecificationsProduct) {
  std::vector<float> first;
  for (int i = 0; i < 64; ++i) first.push_back(static_cast<float>((37 * i + 11) % 127 - 63) / 64);
  uint32_t seed = 7;
  for (int i = 0; i < 64; ++i) {
    seed = seed * 1664525u + 1013904223u;
    first.push_back(static_cast<float>(static_cast<int32_t>(seed >> 8) - (1 << 23)) / 8388608.0f);
  }
  NF4Linear layer(64, 2, false);
  layer->quantize(at::tensor(first).view({2, 64}));
  Tensor x = ((at::arange(64) % 9).to(at::kFloat) - 4).div(4).unsqueeze(0).requires_grad_(true);
  const Tensor y = layer->forward(x);
  EXPECT_NEAR(y[0][0].item<float>(), -0.08341988921165466, 4e-6);  // 64 terms of at most 1: 64 eps
  EXPECT_NEAR(y[0][1].item<float>(), -5.54922148399055, 4e-6);
  y.backward(at::tensor({0.5f, -1.25f}).unsqueeze(0));
  EXPECT_NEAR(x.grad()[0][0].item<float>(), 0.31099992990493774, 2e-7);
  EXPECT_NEAR(x.grad()[0][3].item<float>(), -0.4078129827976227, 2e-7);
  layer->options.compute(at::kBFloat16);
  const Tensor rounded = layer->forward(x.detach());
  EXPECT_NEAR(rounded[0][0].item<float>(), -0.08447265625, 4e-6);
  EXPECT_NEAR(rounded[0][1].item<float>(), -5.54736328125, 4e-6);
}

// Without oneDNN bfloat16 is multiplied in float32.
struct BFloat16Products : ::testing::TestWithParam<bool> {
  BFloat16Products() { at::globalContext().setUserEnabledMkldnn(GetParam()); }
  ~BFloat16Products() override { at::globalContext().setUserEnabledMkldnn(true); }
};
INSTANTIATE_TEST_SUITE_P(OneDnn, BFloat16Products, ::testing::Bool());

TEST_P(BFloat16Products, RoundOneWeightBothWays) {
  for (const int64_t rows : {2, 40}) {
    NF4Linear layer = quantised(200, 90, NF4LinearOptions().compute(at::kBFloat16));
    const Tensor w = layer->dense_weight().to(at::kBFloat16);
    Tensor x = waves({rows, 200}, 0.31).requires_grad_(true);
    const Tensor y = layer->forward(x);
    EXPECT_EQ(y.scalar_type(), at::kFloat);
    const Tensor exact = at::mm(x.detach().to(at::kBFloat16).to(at::kDouble), w.to(at::kDouble).t());
    EXPECT_LE((y.detach() - exact).abs().max().item<double>(), 0x1p-8 * exact.abs().max().item<double>());
    const Tensor grad = waves({rows, 90}, 0.17);
    y.backward(grad);
    const Tensor dx = at::mm(grad.to(at::kBFloat16).to(at::kDouble), w.to(at::kDouble));
    EXPECT_LE((x.grad() - dx).abs().max().item<double>(), 0x1p-8 * dx.abs().max().item<double>());
  }
}

TEST_P(BFloat16Products, TakeBFloat16InputAndLeadingDimensionsAndBias) {
  NF4Linear layer = quantised(64, 10, {}, /*bias=*/true);
  const Tensor x = waves({2, 3, 64}, 0.21).to(at::kBFloat16);
  const Tensor y = layer->forward(x);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_EQ(y.sizes(), at::IntArrayRef({2, 3, 10}));
  const Tensor expected = at::linear(x.to(at::kFloat), layer->dense_weight().to(at::kBFloat16).to(at::kFloat),
                                     layer->bias().to(at::kFloat));
  EXPECT_LE((y.to(at::kFloat) - expected).abs().max().item<float>(), 0x1p-7f * expected.abs().max().item<float>());
  const Tensor rows = waves({40, 64}, 0.21).to(at::kBFloat16).requires_grad_(true);
  layer->product(rows).backward(waves({40, 10}, 0.17).to(at::kBFloat16));
  const Tensor dx = at::mm(waves({40, 10}, 0.17).to(at::kBFloat16).to(at::kFloat),
                           layer->dense_weight().to(at::kBFloat16).to(at::kFloat));
  EXPECT_EQ(rows.grad().scalar_type(), at::kBFloat16);
  EXPECT_LE((rows.grad().to(at::kFloat) - dx).abs().max().item<float>(), 0x1p-7f * dx.abs().max().item<float>());
}

TEST(NF4Linear, IsABaseOfLoRAAndOfAJointProduct) {
  NF4Linear base = quantised(96, 40);
  LoRALinear lora(base.ptr(), LoRALinearOptions(4, 8));
  lora->lora_B->weight.set_data(waves({40, 4}, 0.9));
  const Tensor w = base->dense_weight() + lora->update();
  expect_close(lora->dense_weight(), w, 0, 0);
  Tensor x = waves({16, 96}, 0.31).requires_grad_(true);
  NF4Linear other = quantised(96, 24);
  const Tensor y = joint_forward(x, {lora.ptr().get(), other.ptr().get()});
  const Tensor both = at::cat({w, other->dense_weight()});
  expect_close(y.detach(), at::mm(x.detach(), both.t()), 1e-5, 1e-5);
  const Tensor grad = waves({16, 64}, 0.17);
  y.backward(grad);
  expect_close(x.grad(), at::mm(grad, both), 1e-5, 1e-5);
  EXPECT_TRUE(lora->lora_A->weight.grad().defined());
}

TEST(NF4Linear, GivesTheSameGradientsUnderCheckpointing) {
  NF4Linear base = quantised(64, 64);
  LoRALinear lora(base.ptr(), LoRALinearOptions(4, 8));
  lora->lora_B->weight.set_data(waves({64, 4}, 0.9));
  const auto gradient = [&](bool checkpointed) {
    lora->zero_grad();
    Tensor x = waves({12, 64}, 0.31).requires_grad_(true);
    const auto run = [&](const std::vector<Tensor>& in) { return lora->forward(lora->forward(in[0]).tanh()); };
    (checkpointed ? checkpoint(run, {x}) : run({x})).sum().backward();
    return std::vector<Tensor>{x.grad(), lora->lora_A->weight.grad().clone()};
  };
  const auto plain = gradient(false), again = gradient(true);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::equal(plain[i], again[i]));
}

TEST(NF4Linear, KeepsItsBytesAndNoDenseWeightForTheBackwardPass) {
  NF4Linear layer = quantised(128, 64, NF4LinearOptions().double_quant(true));
  std::vector<Tensor> before;
  for (const Tensor& buffer : layer->buffers()) before.push_back(buffer.clone());
  Tensor x = waves({20, 128}, 0.31).requires_grad_(true);
  const Tensor y = layer->forward(x);
  int64_t saved = 0;
  for (const Tensor& tensor : layer->parameters()) saved += tensor.numel();
  EXPECT_EQ(saved, 0);
  x.detach().fill_(7);  // nothing of x is kept either
  y.sum().backward();
  expect_close(x.grad(), layer->dense_weight().sum(0).expand({20, 128}), 1e-5, 1e-5);
  const auto after = layer->buffers();
  ASSERT_EQ(after.size(), 5u);
  for (size_t i = 0; i < after.size(); ++i) EXPECT_TRUE(at::equal(after[i], before[i]));
}

template <typename F>
std::string error_of(F f) {
  try {
    f();
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

TEST(NF4Linear, RefusesBrokenContractsByName) {
  EXPECT_THAT(error_of([] { NF4Linear(4, 4, false, NF4LinearOptions().blocksize(48)); }), HasSubstr("got 48"));
  NF4Linear layer(8, 4, false);
  EXPECT_THAT(error_of([&] { layer->forward(at::zeros({1, 8})); }), HasSubstr("expected a weight, got none"));
  Tensor dense = waves({4, 8}, 0.1);
  dense[2][5] = NAN;
  EXPECT_THAT(error_of([&] { layer->quantize(dense, "layer.weight"); }), HasSubstr("layer.weight[2, 5] is not finite"));
  EXPECT_THAT(error_of([&] { layer->quantize(at::zeros({8, 4})); }), HasSubstr("got Float [8, 4]"));
  layer->quantize(waves({4, 8}, 0.1));
  EXPECT_THAT(error_of([&] { layer->forward(at::zeros({1, 7})); }), HasSubstr("in_features = 8"));
  NF4LinearImpl::Stored stored{layer->weight, layer->absmax, layer->quant_map, {}, {}, 0};
  stored.absmax = Tensor();
  EXPECT_THAT(error_of([&] { layer->set_packed(stored); }), HasSubstr("absmax of 1 Float elements, got none"));
  stored.absmax = at::zeros({2});
  EXPECT_THAT(error_of([&] { layer->set_packed(stored); }), HasSubstr("got Float [2]"));
}

}  // namespace
}  // namespace lathe::nn
