#include "lathe/nn/checkpoint.h"

#include "lathe/nn/dropout.h"
#include "lathe/nn/lora.h"
#include "lathe/nn/modules.h"
#include "tensor_expect.h"

namespace lathe::nn {
namespace {

using testing::expect_identical;
using testing::ramp;

using Inputs = std::vector<Tensor>;

Tensor leaf(at::IntArrayRef shape, double phase, at::ScalarType dtype = at::kFloat) {
  return ramp(shape, 0.7, phase, dtype).clone().requires_grad_();
}

// Gradients of `leaves` after a backward pass through `forward`.
std::vector<Tensor> gradients_of(const std::function<Tensor()>& forward, const std::vector<Tensor>& leaves) {
  for (const Tensor& tensor : leaves) tensor.mutable_grad().reset();
  const Tensor y = forward();
  (y * ramp(y.sizes(), 1.3, 0.4, y.scalar_type())).sum().backward();
  std::vector<Tensor> gradients;
  for (const Tensor& tensor : leaves) gradients.push_back(tensor.grad().defined() ? tensor.grad().clone() : Tensor());
  return gradients;
}

void expect_same_gradients(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(a[i].defined() && b[i].defined()) << "leaf " << i << " got no gradient";
    expect_identical(a[i], b[i]);
  }
}

TEST(Checkpoint, GivesTheGradientsOfThePlainFunction) {
  const Tensor x = leaf({5, 8}, 0), w = leaf({8, 8}, 1), v = leaf({8, 3}, 2);
  int runs = 0;
  const auto fn = [&](const Inputs& in) {
    ++runs;
    return in[0].mm(w).tanh().mm(v).sigmoid();
  };
  const auto plain = gradients_of([&] { return fn({x}); }, {x, w, v});
  EXPECT_EQ(runs, 1);
  runs = 0;
  expect_same_gradients(gradients_of([&] { return checkpoint(fn, {x}); }, {x, w, v}), plain);
  EXPECT_EQ(runs, 2);
}

TEST(Checkpoint, TrainsCapturedParametersWhenNoInputRequiresAGradient) {
  const Tensor x = ramp({5, 8}), w = leaf({8, 4}, 1);
  const auto fn = [&](const Inputs& in) { return in[0].mm(w).tanh(); };
  const auto plain = gradients_of([&] { return fn({x}); }, {w});
  expect_same_gradients(gradients_of([&] { return checkpoint(fn, {x}); }, {w}), plain);
}

TEST(Checkpoint, KeepsOnlyTheInputs) {
  const Tensor x = leaf({64, 64}, 0);
  c10::weak_intrusive_ptr<c10::StorageImpl> inside(x.storage().getWeakStorageImpl());
  const auto fn = [&](const Inputs& in) {
    const Tensor middle = in[0].exp();  // saves its result
    inside = middle.storage().getWeakStorageImpl();
    return middle.sum();
  };
  const Tensor kept = fn({x});
  EXPECT_FALSE(inside.expired());
  const Tensor y = checkpoint(fn, {x});
  EXPECT_TRUE(inside.expired());
  y.backward();
  EXPECT_TRUE(inside.expired()) << "the recomputed tensor outlives its use";
}

TEST(Checkpoint, ReplaysDropoutOfEveryKind) {
  const Tensor x = leaf({16, 32}, 0);
  LoRALinear lora(torch::nn::Linear(32, 32), LoRALinearOptions(4, 8).dropout(0.5));
  lora->lora_B->weight.set_data(ramp({32, 4}, 0.3));
  const auto fn = [&](const Inputs& in) { return torch::dropout(lora->forward(in[0]), 0.3, true).tanh(); };
  const std::vector<Tensor> leaves = {x, lora->lora_A->weight, lora->lora_B->weight};
  const auto run = [&](const std::function<Tensor()>& forward) {
    torch::manual_seed(3);
    const DropoutStream stream(5);
    auto gradients = gradients_of(forward, leaves);
    gradients.push_back(torch::rand({4}));  // the generator goes on where the forward pass left it
    gradients.push_back(at::scalar_tensor(static_cast<double>(DropoutStream::state().count)));
    return gradients;
  };
  expect_same_gradients(run([&] { return checkpoint(fn, {x}); }), run([&] { return fn({x}); }));
}

TEST(Checkpoint, Nests) {
  const Tensor x = leaf({6, 8}, 0), w = leaf({8, 8}, 1);
  int inner_runs = 0;
  const auto inner = [&](const Inputs& in) {
    ++inner_runs;
    return in[0].mm(w).tanh();
  };
  const auto outer = [&](bool checkpointed) {
    return [&, checkpointed](const Inputs& in) {
      Tensor y = in[0].sin();
      for (int i = 0; i < 3; ++i) y = checkpointed ? checkpoint(inner, {y}) : inner({y});
      return y.exp();
    };
  };
  const auto plain = gradients_of([&] { return outer(false)({x}); }, {x, w});
  inner_runs = 0;
  expect_same_gradients(gradients_of([&] { return checkpoint(outer(true), {x}); }, {x, w}), plain);
  EXPECT_EQ(inner_runs, 9) << "3 in the forward pass, 3 when the outer region is computed again, 3 of their own";
}

TEST(Checkpoint, DifferentiatesTwice) {
  const Tensor x = leaf({4, 4}, 0, at::kDouble);
  const auto second = [&](const std::function<Tensor(const Tensor&)>& f) {
    const Tensor first = torch::autograd::grad({f(x).sum()}, {x}, {}, true, true)[0];
    return torch::autograd::grad({(first * ramp({4, 4}, 1, 0, at::kDouble)).sum()}, {x})[0];
  };
  const auto fn = [](const Inputs& in) { return in[0].sin() * in[0].exp(); };
  testing::expect_close(second([&](const Tensor& t) { return checkpoint(fn, {t}); }),
                        second([&](const Tensor& t) { return fn({t}); }), 1e-14, 1e-14);
}

TEST(Checkpoint, RefusesAFunctionThatDoesNotRepeatItself) {
  const Tensor x = leaf({4, 4}, 0);
  int run = 0;
  const auto backward_of = [&](const std::function<Tensor(const Inputs&)>& fn) -> std::string {
    run = 0;
    try {
      checkpoint(fn, {x}).sum().backward();
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "";
  };
  EXPECT_NE(backward_of([&](const Inputs& in) {
              return in[0].narrow(0, 0, ++run).sin();
            }).find("was Float [1, 4] in the forward pass and is Float [2, 4] in the recomputation"),
            std::string::npos);
  EXPECT_NE(backward_of([&](const Inputs& in) {
              return ++run == 1 ? in[0].sin().exp() : in[0].sin();
            }).find("the recomputation saved 1 tensors, the forward pass 2"),
            std::string::npos);
}

TEST(Checkpoint, DoesNothingWithoutGradients) {
  const at::NoGradGuard no_grad;
  const Tensor x = leaf({3, 3}, 0);
  expect_identical(checkpoint([](const Inputs& in) { return in[0].sin(); }, {x}), x.sin());
}

TEST(Checkpoint, LetsAnExceptionOfTheFunctionThrough) {
  const Tensor x = leaf({3, 3}, 0);
  const auto throwing = [](const Inputs& in) -> Tensor {
    (void)in[0].sin();
    throw std::runtime_error("mine");
  };
  EXPECT_THROW(checkpoint(throwing, {x}), std::runtime_error);
  x.sin().sum().backward();  // no hook is left behind
  expect_identical(x.grad(), x.cos());
}

TEST(DecideOnce, KeepsTheFirstRunsDecisionInNestedRegionsToo) {
  const Tensor x = leaf({4, 4}, 0);
  int decisions = 0, counted = 0;
  const auto routed = [&](const Inputs& in) {
    const Tensor choice = decide_once([&] { return at::full({4, 4}, ++decisions); });
    if (!recomputing()) ++counted;
    return in[0].sin() * choice;
  };
  const auto outer = [&](const Inputs& in) { return checkpoint(routed, {checkpoint(routed, {in[0]})}); };
  checkpoint(outer, {x}).sum().backward();
  EXPECT_EQ(decisions, 2);
  EXPECT_EQ(counted, 2);
  const Tensor by_hand = ((x.detach().sin() * 1).cos() * 2) * x.detach().cos();
  testing::expect_close(x.grad(), by_hand, 1e-6, 1e-7);
  EXPECT_FALSE(recomputing());
}

// gelu(x W) and a norm, as an encoder's MLP has them; W trains, so that every product keeps its input.
struct Mlp {
  Linear up{8, 16}, down{16, 8};
  LayerNorm norm{8, 1e-5};
  explicit Mlp(at::ScalarType dtype) {
    double phase = 0;
    for (auto* module : std::initializer_list<torch::nn::Module*>{&*up, &*down, &*norm}) {
      for (Tensor& parameter : module->parameters())
        parameter.set_data(ramp(parameter.sizes(), 0.4, phase += 1, dtype).clone());
    }
  }
  Tensor forward(const Tensor& x, Gelu kind) {
    return linear_residual_norm(linear_gelu(x, *up, kind), *down, x, *norm, {9, 0.25f});
  }
  std::vector<Tensor> parameters() const {
    return {up->weight, up->bias(), down->weight, down->bias(), norm->weight, norm->bias};
  }
};

class ElementwiseMlp : public ::testing::TestWithParam<std::tuple<at::ScalarType, Gelu>> {};

TEST_P(ElementwiseMlp, GivesTheSameBitsAndKeepsLess) {
  const auto [dtype, kind] = GetParam();
  Mlp mlp(dtype);
  const Tensor x = leaf({40, 8}, 0, dtype);
  auto leaves = mlp.parameters();
  leaves.push_back(x);
  c10::weak_intrusive_ptr<c10::StorageImpl> activation(x.storage().getWeakStorageImpl());
  const auto stack = [&](const Inputs& in) {
    const Tensor hidden = linear_gelu(in[0], *mlp.up, kind);
    activation = hidden.storage().getWeakStorageImpl();
    const Tensor y = linear_residual_norm(hidden, *mlp.down, in[0], *mlp.norm, {9, 0.25f});
    return mlp.forward(y, kind);
  };
  const auto plain = gradients_of([&] { return stack({x}); }, leaves);
  EXPECT_TRUE(activation.expired());
  const auto elementwise = gradients_of(
      [&] {
        const Tensor y = checkpoint(stack, {x}, Recompute::Elementwise);
        EXPECT_TRUE(activation.expired()) << "the activation was kept";
        return y;
      },
      leaves);
  expect_same_gradients(elementwise, plain);
}

INSTANTIATE_TEST_SUITE_P(Checkpoint, ElementwiseMlp,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kDouble),
                                            ::testing::Values(Gelu::Erf, Gelu::Tanh)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) == at::kFloat ? "float32" : "float64") +
                                  (std::get<1>(info.param) == Gelu::Erf ? "_erf" : "_tanh");
                         });

TEST(RunLayers, ComputesEachLayerAgainButTheLastSegments) {
  const Tensor x = leaf({4, 4}, 0);
  std::vector<int> runs;
  const auto layer = [&](int64_t i, const Tensor& y) {
    ++runs[static_cast<size_t>(i)];
    return (y + static_cast<double>(i)).sin().cos();
  };
  const auto counted = [&](LayerPolicy policy) {
    runs.assign(5, 0);
    const auto gradient = gradients_of([&] { return run_layers(x, 5, policy, layer); }, {x});
    return std::make_pair(runs, gradient);
  };
  const auto [plain_runs, plain] = counted({});
  EXPECT_EQ(plain_runs, std::vector<int>({1, 1, 1, 1, 1}));
  const std::vector<std::pair<LayerPolicy, std::vector<int>>> cases = {{{Recompute::Full}, {2, 2, 2, 2, 1}},
                                                                       {{Recompute::Full, 2}, {2, 2, 2, 2, 1}},
                                                                       {{Recompute::Full, 3}, {2, 2, 2, 1, 1}},
                                                                       {{Recompute::Full, 1, 2}, {2, 2, 1, 1, 1}},
                                                                       {{Recompute::Full, 9}, {1, 1, 1, 1, 1}}};
  for (const auto& [policy, expected] : cases) {
    const auto [layer_runs, gradient] = counted(policy);
    EXPECT_EQ(layer_runs, expected);
    expect_same_gradients(gradient, plain);
  }
}

}  // namespace
}  // namespace lathe::nn
