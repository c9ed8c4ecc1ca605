#include "lathe/nn/gemm.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>

#include <pthread.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include "tensor_expect.h"

namespace lathe::nn {
namespace {

using at::Tensor;
using testing::expect_close;
using testing::expect_identical;
using testing::ramp;

// A [rows, columns] as it comes: whole, transposed, a column range, a row range or neither rows nor columns whole.
Tensor laid_out(int layout, int64_t rows, int64_t columns, double scale) {
  switch (layout) {
    case 0:
      return ramp({rows, columns}, scale);
    case 1:
      return ramp({columns, rows}, scale).t();
    case 2:
      return ramp({rows, columns + 7}, scale).narrow(1, 3, columns);
    case 3:
      return ramp({rows + 2, columns}, scale).narrow(0, 1, rows);
    default:
      return ramp({rows, 2 * columns}, scale).view({rows, columns, 2}).select(2, 1);
  }
}

struct GemmTest : ::testing::TestWithParam<bool> {
  GemmTest() : before_(at::globalContext().userEnabledMkldnn()) {
    at::globalContext().setUserEnabledMkldnn(GetParam());
  }
  ~GemmTest() override { at::globalContext().setUserEnabledMkldnn(before_); }
  bool before_;
};

// Where signals find a stack: oneDNN's kernels move the stack pointer to the heap.
struct Stack {
  pthread_t thread;
  const char *lowest, *highest;

  static Stack of_this_thread() {
    pthread_attr_t attributes;
    void* lowest = nullptr;
    size_t bytes = 0;
    EXPECT_EQ(::pthread_getattr_np(::pthread_self(), &attributes), 0);
    EXPECT_EQ(::pthread_attr_getstack(&attributes, &lowest, &bytes), 0);
    ::pthread_attr_destroy(&attributes);
    return {::pthread_self(), static_cast<const char*>(lowest), static_cast<const char*>(lowest) + bytes};
  }
};
std::array<Stack, 2> multiplying;  // the caller and OpenMP's worker
std::atomic<int> seen{0}, off_the_stack{0};

void note_stack(int) {
  const char here = 0;
  for (const Stack& stack : multiplying) {
    if (::pthread_equal(::pthread_self(), stack.thread) != 0 && (&here < stack.lowest || &here >= stack.highest))
      ++off_the_stack;
  }
  ++seen;
}

TEST(GemmSignals, NeverFindTheKernelsStack) {
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  const Tensor a = ramp({384, 384}, 0.7);
  gemm(a, a);
  at::parallel_for(0, 2, 1,
                   [](int64_t i, int64_t) { multiplying.at(static_cast<size_t>(i)) = Stack::of_this_thread(); });
  struct sigaction action {};
  action.sa_handler = note_stack;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR2, &action, nullptr);
  std::atomic<bool> done{false};
  std::thread sender([&] {
    while (!done) {
      for (const Stack& stack : multiplying) ::pthread_kill(stack.thread, SIGUSR2);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  for (int i = 0; i < 3000 && seen < 300; ++i) gemm(a, a);
  done = true;
  sender.join();
  at::set_num_threads(threads);
  EXPECT_GE(seen, 100);
  EXPECT_EQ(off_the_stack, 0);
  std::signal(SIGUSR2, SIG_IGN);  // those that still wait for the worker
}

TEST_P(GemmTest, EqualsTheProductInDoubleForEveryLayout) {
  for (const auto& [m, k, n] : {std::array<int64_t, 3>{1, 5, 3},
                                {7, 1, 9},
                                {33, 70, 65},
                                {130, 64, 16},
                                {3, 384, 384},
                                {32, 37, 1},
                                {45, 129, 8},
                                {101, 33, 11},
                                {9, 40, 1000},
                                {513, 130, 67}}) {
    for (int left = 0; left < 5; ++left) {
      for (int right = 0; right < 5; ++right) {
        const Tensor a = laid_out(left, m, k, 0.7), b = laid_out(right, k, n, 1.1);
        const double atol = 1.2e-7 * static_cast<double>(k);  // of sums of k terms up to 1
        const Tensor expected = at::mm(a.to(at::kDouble), b.to(at::kDouble));
        expect_close(gemm(a, b).to(at::kDouble), expected, 1e-6, atol);
        Tensor wide = at::full({m, n + 4}, NAN), out = wide.narrow(1, 2, n);
        gemm_out(out, a, b);
        expect_close(out.to(at::kDouble), expected, 1e-6, atol);
        gemm_add(out, a, b, 0.5);
        expect_close(out.to(at::kDouble), 1.5 * expected, 1e-6, atol);
        EXPECT_EQ(wide.isnan().sum().item<int64_t>(), 4 * m) << "the columns beside are not touched";
      }
    }
  }
}

TEST_P(GemmTest, MultipliesNothing) {
  EXPECT_EQ(gemm(at::empty({0, 4}), ramp({4, 3}, 1)).numel(), 0);
  expect_identical(gemm(at::empty({2, 0}), at::empty({0, 3})), at::zeros({2, 3}));
  Tensor sum = ramp({2, 3}, 1);
  gemm_add(sum, at::empty({2, 0}), at::empty({0, 3}));
  expect_identical(sum, ramp({2, 3}, 1));
}

TEST_P(GemmTest, KeepsOtherTypesToATen) {
  const Tensor a = ramp({40, 50}, 1).to(at::kDouble), b = ramp({50, 60}, 2).to(at::kDouble);
  expect_identical(gemm(a, b), at::mm(a, b));
}

TEST_P(GemmTest, GivesTheSameBitsInsideAParallelRegion) {
  const Tensor a = ramp({64, 96}, 1), b = ramp({96, 80}, 2);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Tensor alone = gemm(a, b);
  at::set_num_threads(2);
  Tensor out = at::empty({2, 64, 80});
  at::parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      sgemm({64, 80, 96, 1, 0}, {a.const_data_ptr<float>(), 96, false}, {b.const_data_ptr<float>(), 80, false},
            out.data_ptr<float>() + i * 64 * 80, 80);
    }
  });
  at::set_num_threads(threads);
  expect_identical(out[0], alone);
  expect_identical(out[1], alone);
}

INSTANTIATE_TEST_SUITE_P(OneDnnAllowed, GemmTest, ::testing::Bool());

}  // namespace
}  // namespace lathe::nn
