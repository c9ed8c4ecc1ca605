#include "lathe/nn/modules.h"

#include "tensor_expect.h"

namespace lathe::nn {
namespace {

using testing::expect_close;
using testing::ramp;

struct Parts {
  explicit Parts(at::ScalarType dtype) : linear(6, 8), norm(8, 1e-12) {
    linear->weight.set_data(ramp({8, 6}, 0.7, 0, dtype));
    linear->bias().set_data(ramp({8}, 0.7, 1, dtype));
    norm->weight.set_data(ramp({8}, 0.2, 1, dtype) + 1);
    norm->bias.set_data(ramp({8}, 0.4, 0, dtype));
    x = ramp({5, 6}, 0.31, 0, dtype).requires_grad_();
    residual = ramp({5, 8}, 0.53, 0, dtype).requires_grad_();
  }
  std::vector<Tensor> inputs() const { return {x, linear->weight, linear->bias(), residual, norm->weight, norm->bias}; }

  Linear linear;
  LayerNorm norm;
  Tensor x, residual;
};

// Every result and gradient of the fused float32 road next to the composed float64 one, all parameters training.
void expect_fused_equals_composed(const std::function<Tensor(const Parts&)>& f, bool uses_residual) {
  const Parts fused(at::kFloat), composed(at::kDouble);
  std::vector<Tensor> outputs;
  for (const Parts* parts : {&fused, &composed}) {
    outputs.push_back(f(*parts));
    (outputs.back() * ramp(outputs.back().sizes(), 1.3, 0.4, outputs.back().scalar_type())).sum().backward();
  }
  // Sums of up to 8 terms of magnitude up to 4, a GELU within 3e-7: 100 eps_f32.
  expect_close(outputs[0], outputs[1], 1e-5, 1.2e-5);
  const auto a = fused.inputs(), b = composed.inputs();
  for (size_t i = 0; i < (uses_residual ? a.size() : 3); ++i) expect_close(a[i].grad(), b[i].grad(), 1e-5, 3e-5);
}

TEST(LinearGelu, FusedEqualsComposedForBothForms) {
  for (const Gelu kind : {Gelu::Erf, Gelu::Tanh}) {
    expect_fused_equals_composed(
        [kind](const Parts& p) { return linear_gelu(p.x, const_cast<LinearImpl&>(*p.linear), kind); }, false);
  }
}

// The memory of its gradient serves for the product's only where nobody else holds it.
TEST(LinearGelu, LeavesAGradientThatOthersHold) {
  const Parts p(at::kFloat);
  const Tensor grad = ramp({5, 8}, 0.9), copy = grad.clone();
  for (const bool as_view : {false, true}) {
    const Tensor y = linear_gelu(p.x, const_cast<LinearImpl&>(*p.linear), Gelu::Erf);
    y.backward(as_view ? grad.view({40}).view({5, 8}) : grad);
    testing::expect_identical(grad, copy);
  }
}

TEST(LinearResidualNorm, FusedEqualsComposedWithTheSameMask) {
  for (const float rate : {0.0f, 0.3f}) {
    expect_fused_equals_composed(
        [rate](const Parts& p) {
          return linear_residual_norm(p.x, const_cast<LinearImpl&>(*p.linear), p.residual, *p.norm, {17, rate});
        },
        true);
  }
}

TEST(LinearResidualNorm, GradientsEqualFiniteDifferences) {
  const Parts p(at::kDouble);
  testing::expect_gradients(
      [&] {
        return linear_residual_norm(p.x, const_cast<LinearImpl&>(*p.linear), p.residual, *p.norm, {17, 0.3f});
      },
      p.inputs());
}

TEST(Dropout, BackwardDrawsTheSameMask) {
  const Tensor x = ramp({100, 33}).add(2).requires_grad_();
  const Tensor y = dropout(x, {9, 0.25f});
  y.sum().backward();
  const Tensor factors = dropout_factors({100, 33}, {9, 0.25f}, 0, at::kFloat);
  testing::expect_identical(x.grad(), factors);
  testing::expect_identical(y, x * factors);
  // 3300 draws: four standard deviations of a binomial share of 0.75.
  EXPECT_NEAR(factors.gt(0).to(at::kFloat).mean().item<float>(), 0.75, 4 * std::sqrt(0.25 * 0.75 / 3300));
}

TEST(CrossEntropySum, EqualsTorchsWithAndWithoutSmoothing) {
  const Tensor logits = ramp({6, 5}, 0.9, 0, at::kDouble), labels = torch::tensor({0, 4, 2, 1, 3, 3});
  for (const double smoothing : {0.0, 0.1}) {
    const Tensor expected = torch::nn::functional::cross_entropy(
        logits, labels,
        torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kSum).label_smoothing(smoothing));
    expect_close(cross_entropy_sum(logits, labels, smoothing), expected, 1e-12, 1e-12);
  }
}

}  // namespace
}  // namespace lathe::nn
