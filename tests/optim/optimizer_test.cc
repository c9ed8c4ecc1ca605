#include "lathe/optim/optimizer.h"

#include "expect_error.h"
#include "golden.h"
#include "lathe/io/tensors.h"
#include "lathe/optim/adam.h"
#include "lathe/optim/sgd.h"
#include "tensor_expect.h"

namespace lathe::optim {
namespace {

using testing::ramp;

constexpr int64_t kSteps = 200;

std::unique_ptr<Optimizer> make_optimizer(const std::string& name, const NamedTensors& parameters) {
  const auto decayed = [&](double decay) { return with_weight_decay(parameters, decay); };
  if (name == "adamw") return std::make_unique<AdamW>(decayed(0.1), AdamOptions{0.9, 0.98, 1e-7});
  if (name == "adam") return std::make_unique<Adam>(decayed(0.05), AdamOptions{0.8, 0.99, 1e-8});
  if (name == "momentum") return std::make_unique<Sgd>(decayed(0.01), SgdOptions{0.9, false});
  if (name == "nesterov") return std::make_unique<Sgd>(decayed(0.02), SgdOptions{0.8, true});
  return std::make_unique<Sgd>(decayed(0.01));
}

class GoldenTrajectory : public ::testing::TestWithParam<std::string> {};

// tests/golden/optim/optim.py made the trajectories.
TEST_P(GoldenTrajectory, EqualsTorchOptimOverTwoHundredSteps) {
  const io::TensorFile file(testing::golden("optim/optim.safetensors"));
  const Tensor matrix = file.tensor("start.matrix").clone().requires_grad_(),
               vector = file.tensor("start.vector").clone().requires_grad_();
  const auto optimizer = make_optimizer(GetParam(), {{"matrix", matrix}, {"vector", vector}});
  const Tensor lr = file.tensor("lr");
  for (int64_t step = 0; step < kSteps; ++step) {
    matrix.mutable_grad() = file.tensor("grad.matrix")[step].clone();
    vector.mutable_grad() = file.tensor("grad.vector")[step].clone();
    optimizer->step(lr[step].item<double>());
    // Each step rounds values up to 4 a few times: 200 steps of 2⁻²³ each way stay below this.
    testing::expect_close(matrix, file.tensor(GetParam() + ".matrix")[step], 0, 2e-6);
    testing::expect_close(vector, file.tensor(GetParam() + ".vector")[step], 0, 2e-6);
    if (::testing::Test::HasFailure()) FAIL() << "at step " << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Optimizer, GoldenTrajectory, ::testing::Values("adamw", "adam", "sgd", "momentum", "nesterov"),
                         [](const auto& info) { return info.param; });

TEST(Optimizer, GivesEachParameterItsOwnRateAndDecay) {
  const auto run = [](double lr, double lr_factor, double decay) {
    const Tensor p = ramp({2, 3}).clone().requires_grad_(), other = ramp({2, 3}).clone().requires_grad_();
    Sgd optimizer({{"p", p, lr_factor, decay}, {"other", other, 1, 0}});
    p.mutable_grad() = ramp({2, 3}, 0.5, 1);
    other.mutable_grad() = ramp({2, 3}, 0.5, 1);
    optimizer.step(lr);
    testing::expect_close(other, ramp({2, 3}) - lr * ramp({2, 3}, 0.5, 1), 0, 1e-7);
    return p.detach();
  };
  testing::expect_close(run(0.1, 2, 0), run(0.2, 1, 0), 0, 1e-7);
  testing::expect_close(run(0.1, 1, 0.5), ramp({2, 3}) - 0.1 * (ramp({2, 3}, 0.5, 1) + 0.5 * ramp({2, 3})), 0, 1e-7);
}

TEST(Optimizer, NeverDecaysVectors) {
  const auto trained = with_weight_decay({{"matrix", ramp({2, 2})}, {"vector", ramp({2})}}, 0.3);
  EXPECT_EQ(trained[0].weight_decay, 0.3);
  EXPECT_EQ(trained[1].weight_decay, 0);
}

TEST(Sgd, RefusesNesterovWithoutMomentum) { EXPECT_THROW(Sgd({}, SgdOptions{0, true}), c10::ValueError); }

TEST(AdamW, LeavesParametersWithoutAGradientAlone) {
  const Tensor a = ramp({3}).clone().requires_grad_(), b = ramp({3}).clone().requires_grad_();
  AdamW optimizer({{"a", a}, {"b", b}});
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
  AdamW a({{"p", straight}}), b({{"p", stopped}});
  for (int t = 0; t < 3; ++t) {
    step(a, straight, t);
    step(b, stopped, t);
  }
  NamedTensors state;
  for (const auto& [name, tensor] : b.state()) state.emplace_back(name, tensor.clone());
  const Tensor resumed = stopped.detach().clone().requires_grad_();
  AdamW c({{"p", resumed}});
  c.restore_state(state, "state");
  step(a, straight, 3);
  step(c, resumed, 3);
  testing::expect_identical(resumed, straight);
}

TEST(AdamW, RefusesAStateOfOtherParameters) {
  const Tensor p = ramp({2}).clone().requires_grad_();
  AdamW optimizer({{"p", p}});
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
