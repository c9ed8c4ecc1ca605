#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <vector>

namespace lathe::testing {

/// A deterministic tensor without a generator: sin(frequency i + phase), in row-major order.
inline at::Tensor ramp(at::IntArrayRef shape, double frequency = 0.7, double phase = 0,
                       at::ScalarType dtype = at::kFloat) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return torch::arange(count, at::kDouble).mul(frequency).add(phase).sin().view(shape).to(dtype);
}

/// Expects |actual - expected| <= atol + rtol |expected| everywhere; prints the worst element and the count outside.
inline void expect_close(const at::Tensor& actual, const at::Tensor& expected, double rtol, double atol) {
  ASSERT_EQ(actual.sizes(), expected.sizes());
  const at::Tensor a = actual.detach().to(at::kDouble).flatten(), e = expected.detach().to(at::kDouble).flatten();
  if (a.numel() == 0) return;
  const at::Tensor excess = (a - e).abs() - (e.abs() * rtol + atol);
  const at::Tensor outside = excess.le(0).logical_not();  // also where a NaN is
  const auto count = outside.sum().item<int64_t>();
  const auto worst = at::nan_to_num(excess, INFINITY).argmax().item<int64_t>();
  EXPECT_EQ(count, 0) << "of " << a.numel() << "; worst at " << worst << ": " << a[worst].item<double>() << " against "
                      << e[worst].item<double>();
}

inline void expect_identical(const at::Tensor& actual, const at::Tensor& expected) {
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type());
  expect_close(actual, expected, 0, 0);
}

/// Expects the gradients of sum(f() * weights) with respect to `inputs` (float64 leaves) to equal central differences.
inline void expect_gradients(const std::function<at::Tensor()>& f, const std::vector<at::Tensor>& inputs) {
  const auto objective = [&] {
    const at::Tensor y = f();
    return (y * ramp(y.sizes(), 1.3, 0.4, at::kDouble)).sum();
  };
  for (const at::Tensor& input : inputs) input.mutable_grad().reset();
  objective().backward();
  const double h = 1e-6;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const at::NoGradGuard no_grad;
    const at::Tensor numeric = torch::zeros(inputs[i].sizes(), at::kDouble);
    auto* values = inputs[i].data_ptr<double>();
    for (int64_t j = 0; j < inputs[i].numel(); ++j) {
      const double x = values[j];
      values[j] = x + h;
      const double above = objective().item<double>();
      values[j] = x - h;
      const double below = objective().item<double>();
      values[j] = x;
      numeric.data_ptr<double>()[j] = (above - below) / (2 * h);
    }
    ASSERT_TRUE(inputs[i].grad().defined()) << "input " << i;
    // Truncation h² and cancellation eps / h: both about 1e-10 of the objective, here of order 10.
    expect_close(inputs[i].grad(), numeric, 1e-6, 1e-7);
  }
}

}  // namespace lathe::testing
