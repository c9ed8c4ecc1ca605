#include "lathe/nn/kernels.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "lathe/base/random.h"

namespace lathe::nn::kernels {
namespace {

// A buffer that ends at a page nobody may touch, starting where the size puts it: also misaligned.
class Guarded {
 public:
  explicit Guarded(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(float)) {
    const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    body_ = (bytes_ + page - 1) / page * page + page;
    base_ =
        static_cast<char*>(::mmap(nullptr, body_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || ::mprotect(base_ + body_, page, PROT_NONE) != 0) throw std::runtime_error("mmap failed");
    size_ = body_ + page;
  }
  Guarded(int64_t count, double frequency) : Guarded(count) {
    for (int64_t i = 0; i < count; ++i)
      data()[i] = static_cast<float>(3 * std::sin(frequency * static_cast<double>(i) + 0.1));
  }
  ~Guarded() { ::munmap(base_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  float* data() const { return reinterpret_cast<float*>(base_ + body_ - bytes_); }
  float& operator[](int64_t i) const { return data()[i]; }

 private:
  size_t bytes_, body_ = 0, size_ = 0;
  char* base_ = nullptr;
};

std::vector<float> factors(int64_t first, int64_t n, Dropout d) {
  std::vector<float> values(static_cast<size_t>(n), 1);
  dropout(values.data(), values.data(), first, n, d);
  return values;
}

class KernelsTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    hwy::SetSupportedTargetsForTest(GetParam());
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  void TearDown() override { force_portable(false); }
};

std::vector<int64_t> compiled_targets() {
  std::vector<int64_t> targets;
  force_portable(false);
  for (int64_t left = hwy::SupportedTargets(); left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    if (chosen_target() == hwy::TargetName(target)) targets.push_back(target);
  }
  force_portable(false);
  return targets;
}

INSTANTIATE_TEST_SUITE_P(Targets, KernelsTest, ::testing::ValuesIn(compiled_targets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

TEST_P(KernelsTest, RunOnTheTargetThatWasChosen) { EXPECT_EQ(chosen_target(), hwy::TargetName(GetParam())); }

TEST_P(KernelsTest, GeluAndItsDerivativeAreWithinTheApproximation) {
  for (int64_t n = 1; n <= 67; ++n) {
    const Guarded x(2 * n, 0.37), bias(n, 0.11), y(2 * n), slope(2 * n);
    for (const bool tanh : {false, true}) {
      (tanh ? gelu_tanh_forward : gelu_forward)(x.data(), bias.data(), y.data(), slope.data(), 2, n);
      for (int64_t i = 0; i < 2 * n; ++i) {
        const double v = static_cast<double>(x[i] + bias[i % n]);
        double cdf = 0.5 * std::erfc(-v / std::sqrt(2.0)), dcdf = std::exp(-v * v / 2) / std::sqrt(2 * M_PI);
        if (tanh) {
          const double root = std::sqrt(2 / M_PI), t = std::tanh(root * (v + 0.044715 * v * v * v));
          cdf = 0.5 * (1 + t);
          dcdf = 0.5 * (1 - t * t) * root * (1 + 3 * 0.044715 * v * v);
        }
        // 1.5e-7 of the approximation and 2 eps of rounding, times |v| <= 6.
        EXPECT_NEAR(y[i], v * cdf, 1e-6 * std::max(1.0, std::abs(v)));
        EXPECT_NEAR(slope[i], cdf + v * dcdf, 1e-6 * std::max(1.0, std::abs(v)));
      }
    }
  }
}

TEST_P(KernelsTest, ResidualLayerNormEqualsTheFormulaForwardAndBackward) {
  for (int64_t n = 2; n <= 67; n += (n < 20 ? 1 : 7)) {
    for (const Dropout d : {Dropout{}, Dropout{5, 0.3f}}) {
      const int64_t rows = 3, first_row = 11;
      const Guarded h(rows * n, 0.37), bias(n, 0.2), residual(rows * n, 0.61), gamma(n, 0.5), beta(n, 0.9), y(rows * n),
          rstd(rows);
      const std::vector<float> original(h.data(), h.data() + rows * n), mask = factors(first_row * n, rows * n, d);
      residual_layer_norm_forward(h.data(), bias.data(), residual.data(), gamma.data(), beta.data(), y.data(),
                                  rstd.data(), first_row, rows, n, 1e-5f, d);
      const Guarded dy(rows * n, 0.77), dres(rows * n), dh(rows * n);
      residual_layer_norm_backward(dy.data(), h.data(), rstd.data(), gamma.data(), dres.data(),
                                   d.p > 0 ? dh.data() : dres.data(), first_row, rows, n, d);
      for (int64_t r = 0; r < rows; ++r) {
        std::vector<double> s(static_cast<size_t>(n));
        double mean = 0, variance = 0, a = 0, b = 0;
        for (int64_t c = 0; c < n; ++c) {
          const auto i = static_cast<size_t>(r * n + c);
          s[static_cast<size_t>(c)] = (static_cast<double>(original[i]) + bias[c]) * mask[i] + residual[r * n + c];
          mean += s[static_cast<size_t>(c)] / static_cast<double>(n);
        }
        for (const double v : s) variance += (v - mean) * (v - mean) / static_cast<double>(n);
        const double inverse = 1 / std::sqrt(variance + 1e-5);
        for (int64_t c = 0; c < n; ++c) {
          const double xhat = (s[static_cast<size_t>(c)] - mean) * inverse,
                       g = static_cast<double>(dy[r * n + c]) * gamma[c];
          // Cancellation of values up to 15 against a standard deviation of 1/inverse.
          EXPECT_NEAR(h[r * n + c], xhat, 1e-5 * std::max(1.0, inverse));
          EXPECT_NEAR(y[r * n + c], xhat * gamma[c] + beta[c], 4e-5 * std::max(1.0, inverse));
          a += g / static_cast<double>(n);
          b += g * xhat / static_cast<double>(n);
        }
        for (int64_t c = 0; c < n; ++c) {
          const double xhat = (s[static_cast<size_t>(c)] - mean) * inverse,
                       g = static_cast<double>(dy[r * n + c]) * gamma[c];
          const double ds = inverse * (g - a - xhat * b), tolerance = 1e-4 * std::max(1.0, inverse * inverse);
          EXPECT_NEAR(dres[r * n + c], ds, tolerance);
          if (d.p > 0) {
            EXPECT_NEAR(dh[r * n + c], ds * mask[static_cast<size_t>(r * n + c)], 2 * tolerance);
          }
        }
      }
    }
  }
}

TEST_P(KernelsTest, SoftmaxEqualsTheFormulaForwardAndBackward) {
  for (int64_t n = 1; n <= 67; ++n) {
    for (const Dropout d : {Dropout{}, Dropout{5, 0.3f}}) {
      const int64_t rows = 2, ld = n;
      const uint64_t first = 1000003;
      const Guarded p(rows * ld, 0.37), scores(rows * ld, 0.37), grad(rows * ld, 0.9), lse(rows), delta(rows, 0.4);
      const std::vector<float> mask = factors(first, rows * n, d), raw(scores.data(), scores.data() + rows * ld),
                               dp(grad.data(), grad.data() + rows * ld);
      softmax_forward(p.data(), lse.data(), rows, n, ld, first, d);
      softmax_backward(scores.data(), grad.data(), lse.data(), delta.data(), rows, n, ld, first, d);
      for (int64_t r = 0; r < rows; ++r) {
        double total = 0;
        for (int64_t c = 0; c < n; ++c) total += std::exp(static_cast<double>(raw[static_cast<size_t>(r * ld + c)]));
        EXPECT_NEAR(lse[r], std::log(total), 2e-6);
        for (int64_t c = 0; c < n; ++c) {
          const auto i = static_cast<size_t>(r * ld + c);
          const double probability = std::exp(static_cast<double>(raw[i])) / total,
                       m = mask[static_cast<size_t>(r * n + c)];
          EXPECT_NEAR(p[r * ld + c], probability * m, 2e-6);
          EXPECT_NEAR(scores[r * ld + c], probability * m, 2e-6);
          EXPECT_NEAR(grad[r * ld + c], probability * (dp[i] * m - delta[r]), 2e-5);
        }
      }
    }
  }
}

TEST_P(KernelsTest, SmallLoopsTouchNothingPastTheEnd) {
  for (int64_t n = 1; n <= 67; ++n) {
    const Guarded a(n, 0.3), b(n, 0.7), out(n), sums(1);
    multiply(a.data(), b.data(), out.data(), n);
    row_dots(a.data(), n, b.data(), n, sums.data(), 1, n);
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_EQ(out[i], a[i] * b[i]);
      total += static_cast<double>(a[i]) * b[i];
    }
    EXPECT_NEAR(sums[0], total, 1e-4);
  }
}

TEST_P(KernelsTest, NonFiniteValuesStayVisible) {
  for (const float bad : {NAN, INFINITY}) {
    std::vector<float> x(40, 1), y(40), slope(40), lse(1), one(40, 1), zero(40, 0), rstd(1);
    x[21] = bad;
    gelu_forward(x.data(), nullptr, y.data(), slope.data(), 1, 40);
    EXPECT_FALSE(std::isfinite(y[21]));
    std::vector<float> scores = x;
    softmax_forward(scores.data(), lse.data(), 1, 40, 40, 0, {});
    EXPECT_FALSE(std::isfinite(scores[21]));
    residual_layer_norm_forward(x.data(), nullptr, zero.data(), one.data(), zero.data(), y.data(), rstd.data(), 0, 1,
                                40, 1e-5f, {});
    EXPECT_FALSE(std::isfinite(y[0]));
  }
}

TEST_P(KernelsTest, TheMaskIsTheSameOnEveryTargetAndForEverySplit) {
  const Dropout d{0x123456789ABCDEFULL, 0.37f};
  const int64_t first = (int64_t{1} << 32) - 100;  // across the border of the 32-bit count
  const std::vector<float> here = factors(first, 1000, d);
  std::vector<float> in_parts;
  for (const auto& [from, count] : std::vector<std::pair<int64_t, int64_t>>{{0, 37}, {37, 200}, {237, 763}}) {
    const auto part = factors(first + from, count, d);
    in_parts.insert(in_parts.end(), part.begin(), part.end());
  }
  EXPECT_EQ(here, in_parts);
  force_portable(true);
  EXPECT_EQ(here, factors(first, 1000, d));
}

TEST(DropoutMask, HasTheStatisticsOfIndependentDraws) {
  constexpr int64_t kDraws = 1 << 22;
  const float p = 0.1f;
  const auto mask = factors(0, kDraws, {make_key(1, 2), p}), other = factors(0, kDraws, {make_key(1, 3), p});
  const auto share_of_both = [&](const std::vector<float>& a, const std::vector<float>& b, int64_t lag) {
    int64_t both = 0;
    for (int64_t i = 0; i + lag < kDraws; ++i)
      both += a[static_cast<size_t>(i)] == 0 && b[static_cast<size_t>(i + lag)] == 0;
    return static_cast<double>(both) / static_cast<double>(kDraws - lag);
  };
  const auto deviation = [](double q) { return std::sqrt(q * (1 - q) / static_cast<double>(kDraws)); };
  const double single = share_of_both(mask, mask, 0), q = static_cast<double>(p);
  EXPECT_NEAR(single, q, 3 * deviation(q));
  EXPECT_NEAR(share_of_both(mask, other, 0), q * q, 3 * deviation(q * q));
  EXPECT_NEAR(share_of_both(mask, mask, 1), q * q, 3 * deviation(q * q));
  EXPECT_NEAR(share_of_both(mask, mask, 384), q * q, 3 * deviation(q * q));
}

TEST(ForcePortable, ChoosesTheBaseline) {
  force_portable(true);
  EXPECT_EQ(chosen_target(), hwy::TargetName(HWY_STATIC_TARGET));
  force_portable(false);
}

}  // namespace
}  // namespace lathe::nn::kernels
