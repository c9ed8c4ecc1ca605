#include <benchmark/benchmark.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "lathe/nn/kernels.h"

// One layer's element-wise work of a small encoder at batch 16 x 128, on one thread, for every instruction set that
// this CPU and build have. ns_per_element is what to compare with copy, the bound set by memory.

namespace lathe::nn::kernels {
namespace {

constexpr int64_t kRows = 2048, kWidth = 384, kHidden = 1536, kHeads = 192, kTokens = 128;

std::vector<float> wave(int64_t count, double frequency) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(3 * std::sin(frequency * static_cast<double>(i)));
  }
  return values;
}

void choose(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

void measure(benchmark::State& state, int64_t target, int64_t elements, const std::function<void()>& run) {
  choose(target);
  for (auto _ : state) run();
  force_portable(false);
  const double total = static_cast<double>(state.iterations()) * static_cast<double>(elements) * 1e-9;
  state.counters["ns_per_element"] =
      benchmark::Counter(total, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void copy(benchmark::State& state) {
  const std::vector<float> from = wave(kRows * kHidden, 0.3);
  std::vector<float> to(from.size());
  measure(state, 0, kRows * kHidden, [&] {
    std::memcpy(to.data(), from.data(), to.size() * sizeof(float));
    benchmark::ClobberMemory();
  });
}

void gelu(benchmark::State& state, int64_t target, decltype(&gelu_forward) form) {
  const std::vector<float> x = wave(kRows * kHidden, 0.3), bias = wave(kHidden, 0.7);
  std::vector<float> y(x.size()), derivative(x.size());
  measure(state, target, kRows * kHidden,
          [&] { form(x.data(), bias.data(), y.data(), derivative.data(), kRows, kHidden); });
}

void gelu_backward(benchmark::State& state, int64_t target) {
  const std::vector<float> derivative = wave(kRows * kHidden, 0.3), grad = wave(kRows * kHidden, 0.7);
  std::vector<float> out(grad.size());
  measure(state, target, kRows * kHidden,
          [&] { multiply(grad.data(), derivative.data(), out.data(), kRows * kHidden); });
}

void masked(benchmark::State& state, int64_t target, Dropout mask) {
  const std::vector<float> x = wave(kRows * kWidth, 0.3);
  std::vector<float> y(x.size());
  measure(state, target, kRows * kWidth, [&] { dropout(x.data(), y.data(), 0, kRows * kWidth, mask); });
}

void norm_forward(benchmark::State& state, int64_t target, Dropout mask) {
  std::vector<float> h = wave(kRows * kWidth, 0.3), y(h.size()), rstd(kRows);
  const std::vector<float> residual = wave(kRows * kWidth, 0.7), bias = wave(kWidth, 0.5), gamma = bias, beta = bias;
  measure(state, target, kRows * kWidth, [&] {
    residual_layer_norm_forward(h.data(), bias.data(), residual.data(), gamma.data(), beta.data(), y.data(),
                                rstd.data(), 0, kRows, kWidth, 1e-5f, mask);
  });
}

void norm_backward(benchmark::State& state, int64_t target, Dropout mask) {
  const std::vector<float> dy = wave(kRows * kWidth, 0.3), xhat = wave(kRows * kWidth, 0.7), gamma = wave(kWidth, 0.5),
                           rstd(kRows, 1);
  std::vector<float> d_residual(dy.size()), d_h(dy.size());
  measure(state, target, kRows * kWidth, [&] {
    residual_layer_norm_backward(dy.data(), xhat.data(), rstd.data(), gamma.data(), d_residual.data(),
                                 mask.p > 0 ? d_h.data() : d_residual.data(), 0, kRows, kWidth, mask);
  });
}

// One head's scores, in the cache as between the products of attention. Applied again to its own results, which stay
// normal numbers: x -> exp(x - 4) and g -> p (g - 4) converge.
void softmax(benchmark::State& state, int64_t target, Dropout mask, int64_t tokens, bool backward) {
  std::vector<float> scores = wave(tokens * tokens, 0.3), grad = wave(tokens * tokens, 0.7);
  std::vector<float> lse(static_cast<size_t>(tokens), 4);
  const std::vector<float> delta(lse.size(), 4);
  measure(state, target, kHeads * tokens * tokens, [&] {
    for (int64_t head = 0; head < kHeads; ++head) {
      const auto first = static_cast<uint64_t>(head * tokens * tokens);
      if (backward) {
        softmax_backward(scores.data(), grad.data(), lse.data(), delta.data(), tokens, tokens, tokens, first, mask);
      } else {
        softmax_forward(scores.data(), lse.data(), tokens, tokens, tokens, first, mask);
      }
    }
  });
}

void add(const std::string& name, const std::function<void(benchmark::State&)>& run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->Unit(benchmark::kMicrosecond);
}

void register_target(int64_t target) {
  using benchmark::State;
  const std::string suffix = std::string("/") + hwy::TargetName(target);
  const Dropout none, some{7, 0.1f};
  add("gelu" + suffix, [=](State& s) { gelu(s, target, gelu_forward); });
  add("gelu_tanh" + suffix, [=](State& s) { gelu(s, target, gelu_tanh_forward); });
  add("gelu_backward" + suffix, [=](State& s) { gelu_backward(s, target); });
  add("dropout" + suffix, [=](State& s) { masked(s, target, some); });
  for (const Dropout mask : {none, some}) {
    const std::string kind = (mask.p > 0 ? "_dropout" : "") + suffix;
    add("norm_forward" + kind, [=](State& s) { norm_forward(s, target, mask); });
    add("norm_backward" + kind, [=](State& s) { norm_backward(s, target, mask); });
    for (const int64_t tokens : {kTokens, int64_t{37}}) {
      const std::string size = "_" + std::to_string(tokens) + kind;
      add("softmax_forward" + size, [=](State& s) { softmax(s, target, mask, tokens, false); });
      add("softmax_backward" + size, [=](State& s) { softmax(s, target, mask, tokens, true); });
    }
  }
}

}  // namespace
}  // namespace lathe::nn::kernels

int main(int argc, char** argv) {
  using namespace lathe::nn::kernels;
  benchmark::Initialize(&argc, argv);
  add("copy", copy);
  for (int64_t left = hwy::SupportedTargets(); left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    choose(target);
    if (chosen_target() == hwy::TargetName(target)) register_target(target);
    force_portable(false);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
