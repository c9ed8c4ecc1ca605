#include "lathe/nn/kernels.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "nn/kernels_testing.h"

namespace lathe::nn::kernels {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

// A buffer that ends at a page nobody may touch, starting where the size puts it: also misaligned.
class Guarded {
 public:
  explicit Guarded(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(float)) {
    const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    body_ = (bytes_ + page - 1) / page * page + page;
    size_ = body_ + page;
    void* base = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::runtime_error("mmap failed");
    base_ = static_cast<char*>(base);
    if (::mprotect(base_ + body_, page, PROT_NONE) != 0) throw std::runtime_error("mprotect failed");
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
  std::vector<float> values() const { return {data(), data() + bytes_ / sizeof(float)}; }

 private:
  size_t bytes_, body_ = 0, size_ = 0;
  char* base_ = nullptr;
};

INSTANTIATE_TEST_SUITE_P(Targets, KernelsTest, ::testing::ValuesIn(compiled_targets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

TEST_P(KernelsTest, RunOnTheTargetThatWasChosen) { EXPECT_EQ(chosen_target(), hwy::TargetName(GetParam())); }

struct GeluOracle {
  double y, derivative;

  GeluOracle(double v, bool tanh) {
    double cdf = 0.5 * std::erfc(-v / std::sqrt(2.0)), density = std::exp(-v * v / 2) / std::sqrt(2 * M_PI);
    if (tanh) {
      const double root = std::sqrt(2 / M_PI), t = std::tanh(root * (v + 0.044715 * v * v * v));
      cdf = 0.5 * (1 + t);
      density = 0.5 * (1 - t * t) * root * (1 + 3 * 0.044715 * v * v);
    }
    y = v * cdf;
    derivative = cdf + v * density;
  }
};

TEST_P(KernelsTest, GeluAndItsDerivativeAreWithinTheApproximation) {
  constexpr int64_t kCount = 48001;
  std::vector<float> x(kCount), y(kCount), slope(kCount);
  for (int64_t i = 0; i < kCount; ++i) x[static_cast<size_t>(i)] = static_cast<float>(i - kCount / 2) / 2000;
  for (const bool tanh : {false, true}) {
    (tanh ? gelu_tanh_forward : gelu_forward)(x.data(), nullptr, y.data(), slope.data(), 1, kCount);
    double worst_y = 0, worst_slope = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = static_cast<double>(x[i]), scale = std::max(1.0, std::abs(v));
      const GeluOracle exact(v, tanh);
      worst_y = std::max(worst_y, std::abs(static_cast<double>(y[i]) - exact.y) / scale);
      worst_slope = std::max(worst_slope, std::abs(static_cast<double>(slope[i]) - exact.derivative));
    }
    // erf: half of 1.5e-7, plus eps / 2 = 6e-8 in each of the last products. tanh: exp(-2 u) carries the rounding of u,
    // eps |u| / 2, where cdf (1 - cdf) |u| is at most 0.14.
    EXPECT_LT(worst_y, 3e-7) << tanh;
    EXPECT_LT(worst_slope, 3e-7) << tanh;
  }
}

TEST_P(KernelsTest, GeluAddsTheBiasOfEachColumn) {
  for (int64_t n = 1; n <= 67; ++n) {
    const Guarded x(2 * n, 0.37), bias(n, 0.11), y(2 * n), slope(2 * n), in_place(2 * n, 0.37), y_again(2 * n);
    for (const bool tanh : {false, true}) {
      const auto run = tanh ? gelu_tanh_forward : gelu_forward;
      run(x.data(), bias.data(), y.data(), slope.data(), 2, n);
      for (int64_t i = 0; i < 2 * n; ++i) {
        const GeluOracle exact(static_cast<double>(x[i] + bias[i % n]), tanh);
        EXPECT_NEAR(y[i], exact.y, 2e-6);  // 3e-7 |v|, |v| <= 6
        EXPECT_NEAR(slope[i], exact.derivative, 3e-7);
      }
    }
    gelu_tanh_forward(in_place.data(), bias.data(), y_again.data(), in_place.data(), 2, n);
    EXPECT_EQ(in_place.values(), slope.values());
    EXPECT_EQ(y_again.values(), y.values());
  }
}

// With lse = delta = 0 the backward of softmax turns scores into exp(scores).
std::vector<float> exponentials(std::vector<float> x) {
  std::vector<float> grad(x.size(), 1);
  const float zero = 0;
  const auto n = static_cast<int64_t>(x.size());
  softmax_backward(x.data(), grad.data(), &zero, &zero, 1, n, n, 0, {});
  return x;
}

TEST_P(KernelsTest, ExponentialsAreWithinFiveQuartersOfAnUlpAndVanishBelowTheNormalNumbers) {
  constexpr int64_t kCount = 873001;
  std::vector<float> x(kCount);
  for (int64_t i = 0; i < kCount; ++i) x[static_cast<size_t>(i)] = -static_cast<float>(i) / 10000;
  const std::vector<float> y = exponentials(x);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i])), ulp = std::exp2(std::floor(std::log2(exact)) - 23);
    worst = std::max(worst, std::abs(static_cast<double>(y[i]) - exact) / ulp);
  }
  // The polynomial gives 0.05, the reduced argument 0.3 (0.5 without FMA), the last two roundings 0.5 and 0.18.
  EXPECT_LT(worst, 1.25);
  EXPECT_EQ(exponentials({0, -87.34f, -88, -104, -1000, -3e38f, -kInfinity}),
            (std::vector<float>{1, 0, 0, 0, 0, 0, 0}));
  for (const float y_of_nan : exponentials(std::vector<float>(19, kNaN))) EXPECT_TRUE(std::isnan(y_of_nan));
}

// s, x̂ and 1 / σ of one row, from the definition.
struct NormOracle {
  std::vector<double> xhat;
  double rstd = 0;

  NormOracle(const std::vector<double>& s, double eps) : xhat(s) {
    const auto n = static_cast<double>(s.size());
    double mean = 0, variance = 0;
    for (const double v : s) mean += v / n;
    for (const double v : s) variance += (v - mean) * (v - mean) / n;
    rstd = 1 / std::sqrt(variance + eps);
    for (double& v : xhat) v = (v - mean) * rstd;
  }
};

constexpr int64_t kNormRows = 3, kNormFirstRow = 11;

void expect_norm_forward(int64_t n, Dropout d, bool with_bias) {
  const Guarded h(kNormRows * n, 0.37), bias(n, 0.2), residual(kNormRows * n, 0.61), gamma(n, 0.5), beta(n, 0.9),
      y(kNormRows * n), rstd(kNormRows);
  const std::vector<float> original = h.values(), mask = factors(kNormFirstRow * n, kNormRows * n, d);
  residual_layer_norm_forward(h.data(), with_bias ? bias.data() : nullptr, residual.data(), gamma.data(), beta.data(),
                              y.data(), rstd.data(), kNormFirstRow, kNormRows, n, 1e-5f, d);
  for (int64_t r = 0; r < kNormRows; ++r) {
    std::vector<double> s(static_cast<size_t>(n));
    for (int64_t c = 0; c < n; ++c) {
      const auto i = static_cast<size_t>(r * n + c);
      const double before = static_cast<double>(original[i]) + (with_bias ? static_cast<double>(bias[c]) : 0);
      s[static_cast<size_t>(c)] = before * static_cast<double>(mask[i]) + static_cast<double>(residual[r * n + c]);
    }
    const NormOracle exact(s, static_cast<double>(1e-5f));
    // |s| < 16 is rounded three times and the mean once more, at most 5e-7 each, and all is divided by σ.
    const double tolerance = 2e-6 * std::max(1.0, exact.rstd);
    EXPECT_NEAR(rstd[r], exact.rstd, exact.rstd * tolerance);
    for (int64_t c = 0; c < n; ++c) {
      const double xhat = exact.xhat[static_cast<size_t>(c)];
      EXPECT_NEAR(h[r * n + c], xhat, tolerance);
      EXPECT_NEAR(y[r * n + c], xhat * static_cast<double>(gamma[c]) + static_cast<double>(beta[c]), 4 * tolerance);
    }
  }
}

TEST_P(KernelsTest, ResidualLayerNormEqualsTheFormula) {
  for (int64_t n = 1; n <= 67; ++n) {
    for (const Dropout d : {Dropout{}, Dropout{5, 0.3f}}) {
      expect_norm_forward(n, d, true);
      expect_norm_forward(n, d, false);
    }
  }
}

TEST_P(KernelsTest, ResidualLayerNormDoesNotCancelAgainstALargeMean) {
  constexpr int64_t kColumns = 384;
  std::vector<float> h(kColumns), zero(kColumns, 0), one(kColumns, 1), y(kColumns), rstd(1);
  std::vector<double> s;
  for (size_t c = 0; c < h.size(); ++c) {
    h[c] = 1000 + static_cast<float>(c % 7) / 64;  // exact in float32
    s.push_back(static_cast<double>(h[c]));
  }
  residual_layer_norm_forward(h.data(), nullptr, zero.data(), one.data(), zero.data(), y.data(), rstd.data(), 0, 1,
                              kColumns, 1e-5f, {});
  const NormOracle exact(s, static_cast<double>(1e-5f));
  // Adding 384 squares one by one is off by up to 384 eps / 2 = 2.3e-5, half of that in the root. E s² - mean² would
  // lose all digits, and a mean rounded by the same sum the third.
  const double tolerance = 1.2e-5;
  EXPECT_NEAR(rstd[0], exact.rstd, tolerance * exact.rstd);
  for (size_t c = 0; c < h.size(); ++c) EXPECT_NEAR(y[c], exact.xhat[c], 2 * tolerance);  // |x̂| < 2
}

TEST_P(KernelsTest, ResidualLayerNormBackwardEqualsTheFormula) {
  for (int64_t n = 1; n <= 67; ++n) {
    for (const Dropout d : {Dropout{}, Dropout{5, 0.3f}}) {
      const Guarded dy(kNormRows * n, 0.77), xhat(kNormRows * n, 0.21), rstd(kNormRows, 0.4), gamma(n, 0.5),
          d_residual(kNormRows * n), d_h(kNormRows * n);
      const std::vector<float> mask = factors(kNormFirstRow * n, kNormRows * n, d);
      residual_layer_norm_backward(dy.data(), xhat.data(), rstd.data(), gamma.data(), d_residual.data(),
                                   d.p > 0 ? d_h.data() : d_residual.data(), kNormFirstRow, kNormRows, n, d);
      for (int64_t r = 0; r < kNormRows; ++r) {
        double a = 0, b = 0;
        const auto g = [&](int64_t c) { return static_cast<double>(dy[r * n + c]) * static_cast<double>(gamma[c]); };
        for (int64_t c = 0; c < n; ++c) {
          a += g(c) / static_cast<double>(n);
          b += g(c) * static_cast<double>(xhat[r * n + c]) / static_cast<double>(n);
        }
        for (int64_t c = 0; c < n; ++c) {
          const double ds = static_cast<double>(rstd[r]) * (g(c) - a - static_cast<double>(xhat[r * n + c]) * b);
          // Terms of up to 9, 9 and 81, rounded to 4e-6, times |rstd| <= 3.
          EXPECT_NEAR(d_residual[r * n + c], ds, 3e-5);
          if (d.p > 0) {
            EXPECT_EQ(d_h[r * n + c], d_residual[r * n + c] * mask[static_cast<size_t>(r * n + c)]);
          }
        }
      }
    }
  }
}

void expect_softmax(int64_t n, int64_t ld, Dropout d) {
  const int64_t rows = 2, elements = ld + n;
  const uint64_t first = 1000003;
  const Guarded p(elements, 0.37), scores(elements, 0.37), grad(elements, 0.9), lse(rows), delta(rows, 0.4);
  const std::vector<float> mask = factors(first, rows * n, d), raw = scores.values(), dp = grad.values();
  softmax_forward(p.data(), lse.data(), rows, n, ld, first, d);
  softmax_backward(scores.data(), grad.data(), lse.data(), delta.data(), rows, n, ld, first, d);
  for (int64_t r = 0; r < rows; ++r) {
    double total = 0;
    for (int64_t c = 0; c < n; ++c) total += std::exp(static_cast<double>(raw[static_cast<size_t>(r * ld + c)]));
    EXPECT_NEAR(lse[r], std::log(total), 1e-6);  // |lse| < 8: 2 ulp(8)
    for (int64_t c = 0; c < n; ++c) {
      const auto i = static_cast<size_t>(r * ld + c);
      const double probability = std::exp(static_cast<double>(raw[i])) / total,
                   m = static_cast<double>(mask[static_cast<size_t>(r * n + c)]);
      // Exponents up to 8 are off by ulp(8), the rest by a few eps of P <= 1: 2e-6 of P, times |dP m - delta| < 8.
      EXPECT_NEAR(p[r * ld + c], probability * m, 2e-6);
      EXPECT_NEAR(scores[r * ld + c], probability * m, 2e-6);
      EXPECT_NEAR(grad[r * ld + c], probability * (static_cast<double>(dp[i]) * m - static_cast<double>(delta[r])),
                  1.6e-5 * probability + 1e-7);
    }
  }
  for (int64_t i = n; i < ld; ++i) {  // between the rows
    EXPECT_EQ(p[i], raw[static_cast<size_t>(i)]);
    EXPECT_EQ(scores[i], raw[static_cast<size_t>(i)]);
    EXPECT_EQ(grad[i], dp[static_cast<size_t>(i)]);
  }
}

TEST_P(KernelsTest, SoftmaxEqualsTheFormulaForwardAndBackward) {
  for (int64_t n = 1; n <= 67; ++n) {
    for (const Dropout d : {Dropout{}, Dropout{5, 0.3f}}) {
      expect_softmax(n, n, d);
      expect_softmax(n, n + 5, d);
    }
  }
}

TEST_P(KernelsTest, SoftmaxOfNoColumnsIsAnEmptySum) {
  std::vector<float> lse(3, 7);
  softmax_forward(nullptr, lse.data(), 3, 0, 0, 0, {5, 0.3f});
  EXPECT_EQ(lse, std::vector<float>(3, -kInfinity));
  softmax_backward(nullptr, nullptr, lse.data(), lse.data(), 3, 0, 0, 0, {5, 0.3f});
}

TEST_P(KernelsTest, SoftmaxGivesNothingToScoresOfMinusInfinityAndSurvivesLargeOnes) {
  for (const float shift : {0.0f, 3e4f, -3e4f}) {
    std::vector<float> scores(23, -kInfinity), lse(1);
    scores[3] = scores[22] = shift;
    scores[4] = shift - 200;
    softmax_forward(scores.data(), lse.data(), 1, 23, 23, 0, {});
    std::vector<float> expected(23, 0);
    expected[3] = expected[22] = 0.5f;
    EXPECT_EQ(scores, expected);
    EXPECT_EQ(lse[0], shift + std::log(2.0f));
  }
}

TEST_P(KernelsTest, SmallLoopsTouchNothingPastTheEnd) {
  const Dropout d{9, 0.4f};
  for (int64_t n = 1; n <= 67; ++n) {
    const Guarded a(2 * n, 0.3), b(2 * n, 0.7), out(2 * n), dropped(2 * n), sums(2), by_columns(2 * (n + 3) - 3, 0.3);
    multiply(a.data(), b.data(), out.data(), 2 * n);
    row_dots(a.data(), n, by_columns.data(), n + 3, sums.data(), 2, n);
    dropout(a.data(), dropped.data(), n, 2 * n, d);
    for (int64_t i = 0; i < 2 * n; ++i) {
      EXPECT_EQ(out[i], a[i] * b[i]);
      EXPECT_EQ(dropped[i], a[i] * factor_of(static_cast<uint64_t>(n + i), d));
    }
    for (int64_t r = 0; r < 2; ++r) {
      double total = 0, magnitude = 0;
      for (int64_t c = 0; c < n; ++c) {
        const double product = static_cast<double>(a[r * n + c]) * static_cast<double>(by_columns[r * (n + 3) + c]);
        total += product;
        magnitude += std::abs(product);
      }
      EXPECT_NEAR(sums[r], total, 6e-8 * static_cast<double>(n) * magnitude);  // n roundings of eps / 2
    }
  }
}

TEST_P(KernelsTest, NonFiniteValuesStayVisible) {
  constexpr int64_t kColumns = 37;  // the bad value in a full vector or in the rest
  for (const float bad : {kNaN, kInfinity, -kInfinity}) {
    for (const int64_t at : {0, 21, 36}) {
      const auto place = static_cast<size_t>(at);
      std::vector<float> x(kColumns, 1), y(kColumns), slope(kColumns), lse(1), zero(kColumns, 0), rstd(1);
      const std::vector<float> one(kColumns, 1);
      x[place] = bad;
      for (const auto run : {gelu_forward, gelu_tanh_forward}) {
        run(x.data(), nullptr, y.data(), slope.data(), 1, kColumns);
        EXPECT_FALSE(std::isfinite(y[place]) && std::isfinite(slope[place]));
      }
      dropout(x.data(), y.data(), 0, kColumns, {1, 0.99f});
      EXPECT_FALSE(std::isfinite(y[place]));
      std::vector<float> h = x;
      residual_layer_norm_forward(h.data(), nullptr, zero.data(), one.data(), zero.data(), y.data(), rstd.data(), 0, 1,
                                  kColumns, 1e-5f, {});
      EXPECT_FALSE(std::isfinite(y[0]));
      residual_layer_norm_backward(x.data(), one.data(), one.data(), one.data(), y.data(), y.data(), 0, 1, kColumns,
                                   {});
      EXPECT_FALSE(std::isfinite(y[0]));
      row_dots(x.data(), kColumns, one.data(), kColumns, rstd.data(), 1, kColumns);
      EXPECT_FALSE(std::isfinite(rstd[0]));
      std::vector<float> scores = one, grad = x;
      softmax_backward(scores.data(), grad.data(), zero.data(), zero.data(), 1, kColumns, kColumns, 0, {1, 0.99f});
      EXPECT_FALSE(std::isfinite(grad[place]));
      if (bad == -kInfinity) continue;  // a masked score
      scores = x;
      softmax_forward(scores.data(), lse.data(), 1, kColumns, kColumns, 0, {1, 0.99f});
      EXPECT_FALSE(std::isfinite(scores[0]) || std::isfinite(lse[0]));
    }
  }
}

// Every kernel's results over `rows` rows, the rows from `begin` on in calls of their own.
std::vector<float> all_results(int64_t rows, int64_t columns, const std::vector<int64_t>& begins) {
  const Dropout d{77, 0.2f};
  const Guarded h(rows * columns, 0.37), residual(rows * columns, 0.61), vector(columns, 0.5), p(rows * columns, 0.9),
      raw(rows * columns, 0.9), grad(rows * columns, 0.4);
  std::vector<float> results;
  for (size_t i = 0; i + 1 < begins.size(); ++i) {
    const int64_t at = begins[i] * columns, n = begins[i + 1] - begins[i];
    const auto places = static_cast<uint64_t>(at);
    std::vector<std::vector<float>> out(6, std::vector<float>(static_cast<size_t>(n * columns)));
    std::vector<float> rstd(static_cast<size_t>(n)), lse(rstd), dots(rstd);
    gelu_forward(h.data() + at, vector.data(), out[0].data(), out[1].data(), n, columns);
    gelu_tanh_forward(h.data() + at, vector.data(), out[2].data(), out[3].data(), n, columns);
    residual_layer_norm_forward(h.data() + at, vector.data(), residual.data() + at, vector.data(), vector.data(),
                                out[4].data(), rstd.data(), begins[i], n, columns, 1e-5f, d);
    residual_layer_norm_backward(residual.data() + at, h.data() + at, rstd.data(), vector.data(), out[5].data(),
                                 out[3].data(), begins[i], n, columns, d);
    softmax_forward(p.data() + at, lse.data(), n, columns, columns, places, d);
    row_dots(p.data() + at, columns, h.data() + at, columns, dots.data(), n, columns);
    softmax_backward(raw.data() + at, grad.data() + at, lse.data(), dots.data(), n, columns, columns, places, d);
    for (int64_t r = 0; r < n; ++r) {
      for (const auto& values : out) {
        results.insert(results.end(), values.begin() + r * columns, values.begin() + (r + 1) * columns);
      }
      const auto row = static_cast<size_t>(r);
      results.insert(results.end(), {rstd[row], lse[row], dots[row]});
    }
  }
  for (const Guarded* values : {&h, &p, &raw, &grad}) {
    const auto changed = values->values();
    results.insert(results.end(), changed.begin(), changed.end());
  }
  return results;
}

TEST_P(KernelsTest, TheSameBitsComeFromEveryRunAndEverySplitOfTheRows) {
  for (const int64_t columns : {5, 53, 128}) {
    const std::vector<float> whole = all_results(9, columns, {0, 9});
    EXPECT_EQ(whole, all_results(9, columns, {0, 9}));
    EXPECT_EQ(whole, all_results(9, columns, {0, 1, 4, 9}));
  }
}

}  // namespace
}  // namespace lathe::nn::kernels
