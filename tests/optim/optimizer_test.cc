#include "lathe/optim/adamw.h"

#include "expect_error.h"
#include "tensor_expect.h"

namespace lathe::optim {
namespace {

using testing::ramp;

// Adam with decoupled decay by the paper's formula, in float64.
void textbook_step(Tensor& p, Tensor& m, Tensor& v, const Tensor& grad, int64_t t, double lr, const AdamWOptions& o,
                   double decay) {
  p.mul_(1 - lr * decay);
  m.mul_(o.beta1).add_(grad, 1 - o.beta1);
  v.mul_(o.beta2).addcmul_(grad, grad, 1 - o.beta2);
  const Tensor m_hat = m / (1 - std::pow(o.beta1, t)), v_hat = v / (1 - std::pow(o.beta2, t));
  p.sub_(lr * m_hat / (v_hat.sqrt() + o.eps));
}

TEST(AdamW, EqualsTheFormulaAndDecaysOnlyMatrices) {
  const AdamWOptions options{0.8, 0.95, 1e-8, 0.1};
  const Tensor matrix = ramp({3, 4}).clone().requires_grad_(), vector = ramp({5}, 0.3).clone().requires_grad_();
  AdamW optimizer({{"matrix", matrix}, {"vector", vector}}, options);
  std::vector<Tensor> p = {matrix.detach().to(at::kDouble).clone(), vector.detach().to(at::kDouble).clone()}, m, v;
  for (const Tensor& tensor : p) {
    m.push_back(at::zeros_like(tensor));
    v.push_back(at::zeros_like(tensor));
  }
  for (int64_t t = 1; t <= 20; ++t) {
    const double lr = 0.01 * static_cast<double>(t);
    for (size_t i = 0; i < 2; ++i) {
      const Tensor grad = ramp(p[i].sizes(), 0.5, static_cast<double>(t), at::kDouble);
      (i == 0 ? matrix : vector).mutable_grad() = grad.to(at::kFloat);
      textbook_step(p[i], m[i], v[i], grad, t, lr, options, i == 0 ? options.weight_decay : 0);
    }
    optimizer.step(lr);
  }
  // 20 steps of a few float32 roundings of values up to 3.
  testing::expect_close(matrix, p[0], 0, 2e-5);
  testing::expect_close(vector, p[1], 0, 2e-5);
}

TEST(AdamW, LeavesParametersWithoutAGradientAlone) {
  const Tensor a = ramp({3}).clone().requires_grad_(), b = ramp({3}).clone().requires_grad_();
  AdamW optimizer({{"a", a}, {"b", b}}, {});
  a.mutable_grad() = ramp({3}, 0.1, 1);
  optimizer.step(0.1);
  testing::expect_identical(b, ramp({3}));
  EXPECT_FALSE(at::equal(a, ramp({3})));
  optimizer.zero_grad();
  EXPECT_FALSE(a.grad().defined());
}

TEST(AdamW, GoesOnFromARestoredState) {
  const auto step = [](AdamW& optimizer, const Tensor& p, int t) {
    p.mutable_grad() = ramp({2, 2}, 0.5, t);
    optimizer.step(0.1);
  };
  const Tensor straight = ramp({2, 2}).clone().requires_grad_(), stopped = ramp({2, 2}).clone().requires_grad_();
  AdamW a({{"p", straight}}, {}), b({{"p", stopped}}, {});
  for (int t = 0; t < 3; ++t) {
    step(a, straight, t);
    step(b, stopped, t);
  }
  NamedTensors state;
  for (const auto& [name, tensor] : b.state()) state.emplace_back(name, tensor.clone());
  const Tensor resumed = stopped.detach().clone().requires_grad_();
  AdamW c({{"p", resumed}}, {});
  c.restore_state(state, "state");
  step(a, straight, 3);
  step(c, resumed, 3);
  testing::expect_identical(resumed, straight);
}

TEST(AdamW, RefusesAStateOfOtherParameters) {
  const Tensor p = ramp({2}).clone().requires_grad_();
  AdamW optimizer({{"p", p}}, {});
  const auto refusal = [&](const NamedTensors& state) {
    return testing::error_text(ErrorKind::Data, [&] { optimizer.restore_state(state, "f"); });
  };
  EXPECT_EQ(refusal({}), "f: expected 3 tensors, got 0");
  EXPECT_EQ(refusal({{"q.exp_avg", p}, {"p.exp_avg_sq", p}, {"p.step", p}}), "f: p.exp_avg: is missing");
  EXPECT_EQ(refusal({{"p.exp_avg", ramp({3})}, {"p.exp_avg_sq", p}, {"p.step", p}}),
            "f: p.exp_avg: has another shape than the parameter");
}

TEST(ClipGradients, ScalesOnlyAboveTheBoundAsTorchDoes) {
  const auto clipped = [](double scale, double max_norm) {
    const Tensor p = ramp({4}).clone().requires_grad_();
    p.mutable_grad() = ramp({4}, 0.5, 1) * scale;
    const GradientNorm norm = clip_gradients({{"p", p}}, max_norm);
    EXPECT_NEAR(norm.norm, p.grad().defined() ? (ramp({4}, 0.5, 1) * scale).norm().item<double>() : 0, 1e-6 * scale);
    return p.grad().norm().item<double>();
  };
  EXPECT_NEAR(clipped(10, 1), 1, 1e-6);
  EXPECT_NEAR(clipped(0.01, 1), 0.01 * ramp({4}, 0.5, 1).norm().item<double>(), 1e-9);
  EXPECT_NEAR(clipped(10, 0), 10 * ramp({4}, 0.5, 1).norm().item<double>(), 1e-5);
}

TEST(ClipGradients, SeesNonFiniteElements) {
  for (const float bad : {NAN, INFINITY}) {
    const Tensor p = ramp({4}).clone().requires_grad_();
    p.mutable_grad() = at::full({4}, bad);
    EXPECT_FALSE(clip_gradients({{"p", p}}, 1).finite);
  }
  const Tensor p = ramp({4}).clone().requires_grad_();
  p.mutable_grad() = at::full({4}, 3e38f);  // finite, although its square is not in float32
  EXPECT_TRUE(clip_gradients({{"p", p}}, 1).finite);
}

}  // namespace
}  // namespace lathe::optim
