#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "nn/kernels_testing.h"

namespace lathe::nn::kernels {
namespace {

class MaskTest : public KernelsTest {};

INSTANTIATE_TEST_SUITE_P(Targets, MaskTest, ::testing::ValuesIn(compiled_targets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

TEST_P(MaskTest, TheMaskIsTheHashOfKeyAndPlaceForEveryTargetAndSplit) {
  const Dropout d{0x123456789ABCDEFULL, 0.37f};
  for (const int64_t first : {int64_t{0}, int64_t{12345}, kBorder - 100, 5 * kBorder + 7}) {
    const std::vector<float> here = factors(first, 1000, d);
    for (int64_t i = 0; i < 1000; ++i) {
      ASSERT_EQ(here[static_cast<size_t>(i)], factor_of(static_cast<uint64_t>(first + i), d)) << first << " " << i;
    }
    std::vector<float> in_parts;
    for (const auto& [from, count] : std::vector<std::pair<int64_t, int64_t>>{{0, 37}, {37, 200}, {237, 763}}) {
      const auto part = factors(first + from, count, d);
      in_parts.insert(in_parts.end(), part.begin(), part.end());
    }
    EXPECT_EQ(here, in_parts);
  }
}

TEST_P(MaskTest, RowsThatCrossTheBorderOfTheCountDrawTheMaskOfTheirPlaces) {
  const Dropout d{3, 0.5f};
  constexpr int64_t kColumns = 67;
  for (int64_t before = 0; before <= kColumns; ++before) {
    const int64_t first = kBorder - before;
    std::vector<float> scores(kColumns, 0), lse(1);
    softmax_forward(scores.data(), lse.data(), 1, kColumns, kColumns, static_cast<uint64_t>(first), d);
    const std::vector<float> mask = factors(first, kColumns, d);
    for (size_t c = 0; c < scores.size(); ++c) EXPECT_EQ(scores[c] > 0, mask[c] > 0) << before << " " << c;
  }
  const int64_t row = kBorder / kColumns;  // begins before the border, ends past it
  std::vector<float> dy(kColumns), xhat(kColumns, 0), one(kColumns, 1), d_residual(kColumns), d_h(kColumns);
  for (size_t c = 0; c < dy.size(); ++c) dy[c] = static_cast<float>(c);
  residual_layer_norm_backward(dy.data(), xhat.data(), one.data(), one.data(), d_residual.data(), d_h.data(), row, 1,
                               kColumns, d);
  const std::vector<float> mask = factors(row * kColumns, kColumns, d);
  for (size_t c = 0; c < dy.size(); ++c) EXPECT_EQ(d_h[c], d_residual[c] * mask[c]) << c;
}

TEST_P(MaskTest, RatesNearZeroAndOneKeepAndDropWhatTheySay) {
  const std::vector<float> all(4096, 1);
  EXPECT_EQ(factors(0, 4096, {1, 0}), all);
  EXPECT_EQ(factors(0, 4096, {1, 1e-12f}), all);
  const std::vector<float> few = factors(0, 4096, {1, 0x1.fffffep-1f});
  EXPECT_EQ(few, std::vector<float>(4096, 0));
}

TEST(DropoutMask, HasTheStatisticsOfIndependentDraws) {
  constexpr int64_t kDraws = 1 << 22;
  for (const float p : {0.1f, 0.5f}) {
    const auto mask = factors(0, kDraws, {make_key(1, 2), p}), other = factors(0, kDraws, {make_key(1, 3), p});
    const auto share_of_both = [&](const std::vector<float>& a, const std::vector<float>& b, int64_t lag) {
      int64_t both = 0;
      for (int64_t i = 0; i + lag < kDraws; ++i)
        both += a[static_cast<size_t>(i)] == 0 && b[static_cast<size_t>(i + lag)] == 0;
      return static_cast<double>(both) / static_cast<double>(kDraws - lag);
    };
    const auto deviation = [](double q) { return std::sqrt(q * (1 - q) / static_cast<double>(kDraws)); };
    const double q = static_cast<double>(p);
    EXPECT_NEAR(share_of_both(mask, mask, 0), q, 3 * deviation(q));
    EXPECT_NEAR(share_of_both(mask, other, 0), q * q, 3 * deviation(q * q));
    EXPECT_NEAR(share_of_both(mask, mask, 1), q * q, 3 * deviation(q * q));
    EXPECT_NEAR(share_of_both(mask, mask, 384), q * q, 3 * deviation(q * q));
  }
}

TEST(DropoutMask, DrawsAtTheDistancesOfAModelAreUncorrelated) {
  constexpr int64_t kDraws = 1 << 20, kKeys = 32;
  for (const float p : {0.1f, 0.5f}) {
    for (const int64_t lag : {1, 2, 64, 128, 384, 768, 1536, 4096}) {
      double squares = 0;
      for (uint64_t key = 0; key < kKeys; ++key) {
        const auto mask = factors(0, kDraws, {make_key(4, key), p});
        int64_t early = 0, late = 0, both = 0;
        for (int64_t i = 0; i + lag < kDraws; ++i) {
          const int64_t a = mask[static_cast<size_t>(i)] == 0, b = mask[static_cast<size_t>(i + lag)] == 0;
          early += a, late += b, both += a & b;
        }
        const auto n = static_cast<double>(kDraws - lag), q = static_cast<double>(p);
        const double z = (static_cast<double>(both) - q * static_cast<double>(early + late) + n * q * q) /
                         (std::sqrt(n) * q * (1 - q));
        squares += z * z;
      }
      // A sum of 32 squares of standard normal numbers: 32 +- 8.
      EXPECT_NEAR(squares, kKeys, 3 * 8) << p << " " << lag;
    }
  }
}

TEST(ForcePortable, ChoosesTheBaselineAndGivesItBack) {
  force_portable(false);
  const std::string usual = chosen_target();
  force_portable(true);
  EXPECT_EQ(chosen_target(), hwy::TargetName(HWY_STATIC_TARGET));
  force_portable(false);
  EXPECT_EQ(chosen_target(), usual);
}

TEST(ForcePortable, IsWhatTheEnvironmentVariableDoesAtStart) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // starts this program again
  ASSERT_EQ(::setenv("LATHE_KERNELS", "portable", 1), 0);
  EXPECT_EXIT(std::exit(chosen_target() == hwy::TargetName(HWY_STATIC_TARGET) ? 0 : 1), ::testing::ExitedWithCode(0),
              "");
  ::unsetenv("LATHE_KERNELS");
}

}  // namespace
}  // namespace lathe::nn::kernels
