#include "lathe/nn/attention.h"

#include "lathe/nn/dropout.h"
#include "tensor_expect.h"

namespace lathe::nn {
namespace {

using testing::expect_close;
using testing::expect_gradients;
using testing::ramp;

RowOffsets offsets(std::vector<int64_t> values) {
  return std::make_shared<const std::vector<int64_t>>(std::move(values));
}

// One sample's attention by the formula, in float64.
Tensor textbook(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads) {
  std::vector<Tensor> out;
  const int64_t d = q.size(1) / heads;
  for (int64_t h = 0; h < heads; ++h) {
    const auto head = [&](const Tensor& x) { return x.narrow(1, h * d, d); };
    out.push_back(
        at::matmul(at::softmax(at::matmul(head(q), head(k).t()) / std::sqrt(static_cast<double>(d)), -1), head(v)));
  }
  return at::cat(out, 1);
}

TEST(SelfAttention, EqualsTheFormulaSampleBySample) {
  const auto rows = offsets({0, 3, 3, 8});  // an empty sample too
  const Tensor qkv = ramp({8, 3 * 6}, 0.37, 0, at::kDouble);
  std::vector<Tensor> expected;
  for (const auto& [from, count] : std::vector<std::pair<int64_t, int64_t>>{{0, 3}, {3, 5}}) {
    const Tensor x = qkv.narrow(0, from, count);
    expected.push_back(textbook(x.narrow(1, 0, 6), x.narrow(1, 6, 6), x.narrow(1, 12, 6), 2));
  }
  expect_close(self_attention(qkv, rows, {.num_heads = 2}), at::cat(expected), 1e-12, 1e-12);
  // 6 products and a softmax in float32, values up to 1: 20 eps.
  expect_close(self_attention(qkv.to(at::kFloat), rows, {.num_heads = 2}), at::cat(expected), 0, 3e-6);
}

TEST(SelfAttention, GradientsEqualFiniteDifferencesAlsoWithDropout) {
  const Tensor qkv = ramp({7, 3 * 4}, 0.37, 0.1, at::kDouble).requires_grad_();
  expect_gradients([&] { return self_attention(qkv, offsets({0, 2, 7}), {.num_heads = 2}); }, {qkv});
  expect_gradients(
      [&] {
        return self_attention(qkv, offsets({0, 2, 7}), {.num_heads = 2, .dropout = {5, 0.3f}});
      },
      {qkv});
}

class FusedAttentionTest : public ::testing::TestWithParam<float> {};

TEST_P(FusedAttentionTest, EqualsTheComposedOperatorsWithTheSameMask) {
  const AttentionOptions options{.num_heads = 3, .dropout = {11, GetParam()}};
  const auto rows = offsets({0, 5, 18, 40}), queries = offsets({0, 1, 2, 4});
  for (const bool cross : {false, true}) {
    const Tensor a = ramp({cross ? 4 : 40, cross ? 24 : 72}, 0.37), kv = ramp({40, 48}, 0.61);
    const auto run = [&](const Tensor& first, const Tensor& second) {
      return cross ? cross_attention(first, queries, second, rows, options) : self_attention(first, rows, options);
    };
    std::vector<std::vector<Tensor>> results;
    for (const auto dtype : {at::kFloat, at::kDouble}) {  // float64 takes the composed road
      const Tensor first = a.to(dtype).detach().clone().requires_grad_(),
                   second = kv.to(dtype).detach().clone().requires_grad_();
      const Tensor y = run(first, second);
      (y * ramp(y.sizes(), 1.3, 0.4, dtype)).sum().backward();
      results.push_back({y, first.grad(), cross ? second.grad() : first.grad()});
    }
    // Sums of up to 22 terms of magnitude up to 1/(1-p): 100 eps_f32.
    for (size_t i = 0; i < results[0].size(); ++i) expect_close(results[0][i], results[1][i], 0, 1.2e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Rates, FusedAttentionTest, ::testing::Values(0.0f, 0.1f, 0.5f), [](const auto& info) {
  return "percent_" + std::to_string(static_cast<int>(info.param * 100));
});

TEST(SelfAttention, LeavesTheKeyGradientZeroWhenNobodyReadsIt) {
  const Tensor qkv = ramp({9, 3 * 8}).requires_grad_();
  self_attention(qkv, offsets({0, 9}), {.num_heads = 2}).square().sum().backward();
  const Tensor full = qkv.grad().clone();
  qkv.mutable_grad().reset();
  self_attention(qkv, offsets({0, 9}), {.num_heads = 2, .key_gradient = false}).square().sum().backward();
  EXPECT_EQ(qkv.grad().narrow(1, 8, 8).abs().max().item<float>(), 0);
  testing::expect_identical(qkv.grad().narrow(1, 0, 8), full.narrow(1, 0, 8));
  testing::expect_identical(qkv.grad().narrow(1, 16, 8), full.narrow(1, 16, 8));
}

TEST(SelfAttention, GivesTheSameBitsForAnyNumberOfThreads) {
  const Tensor qkv = ramp({60, 3 * 16});
  const AttentionOptions options{.num_heads = 4, .dropout = {3, 0.1f}};
  at::set_num_threads(1);
  const Tensor one = self_attention(qkv, offsets({0, 20, 60}), options);
  at::set_num_threads(2);
  testing::expect_identical(self_attention(qkv, offsets({0, 20, 60}), options), one);
}

TEST(SelfAttention, RefusesOffsetsThatDoNotCoverTheRows) {
  EXPECT_THROW(self_attention(ramp({5, 12}), offsets({0, 4}), {.num_heads = 2}), c10::ValueError);
  EXPECT_THROW(self_attention(ramp({5, 12}), offsets({0, 5}), {.num_heads = 3}), c10::ValueError);
}

}  // namespace
}  // namespace lathe::nn
