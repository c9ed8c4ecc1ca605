#include "lathe/report/series.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace lathe::report {
namespace {

using ::testing::DoubleEq;
using ::testing::ElementsAre;

constexpr double kGap = std::numeric_limits<double>::quiet_NaN();

Series wave(size_t size) {
  Series series;
  for (size_t i = 0; i < size; ++i) {
    series.x.push_back(static_cast<double>(i + 1));
    series.y.push_back(std::sin(0.37 * static_cast<double>(i)));
  }
  return series;
}

TEST(ThinOut, LeavesAShortCurveAlone) {
  const Series series = wave(2000);
  EXPECT_EQ(thin_out(series, 2000).x, series.x);
  EXPECT_TRUE(thin_out({}, 2000).x.empty());
}

TEST(ThinOut, KeepsEndsAndExtremesWithinTheBound) {
  Series series = wave(100000);
  series.y[31415] = 100;
  series.y[31416] = -100;
  const Series thin = thin_out(series, 2000);
  EXPECT_LE(thin.x.size(), 2000U);
  EXPECT_GT(thin.x.size(), 1000U);
  EXPECT_EQ(thin.x.size(), thin.y.size());
  EXPECT_TRUE(std::is_sorted(thin.x.begin(), thin.x.end(), std::less_equal<>{}));
  EXPECT_EQ(thin.x.front(), 1);
  EXPECT_EQ(thin.x.back(), 100000);
  EXPECT_EQ(*std::max_element(thin.y.begin(), thin.y.end()), 100);
  EXPECT_EQ(*std::min_element(thin.y.begin(), thin.y.end()), -100);
}

TEST(ThinOut, KeepsGaps) {
  Series series = wave(100000);
  series.y[50000] = kGap;
  const Series thin = thin_out(series, 2000);
  EXPECT_EQ(std::count_if(thin.y.begin(), thin.y.end(), [](double y) { return std::isnan(y); }), 1);
  std::fill(series.y.begin(), series.y.end(), kGap);
  EXPECT_LE(thin_out(series, 2000).x.size(), 2000U);
}

TEST(Smooth, IsTheMeanOfWhatWasSeen) {
  // span 3: a = 1/2, so the weights are 1, 1/2, 1/4.
  EXPECT_THAT(smooth({4, 1, 2}, 3), ElementsAre(DoubleEq(4), DoubleEq(2), DoubleEq(2)));
  EXPECT_THAT(smooth({7, 7, 7, 7}, 10), ElementsAre(DoubleEq(7), DoubleEq(7), DoubleEq(7), DoubleEq(7)));
}

TEST(Smooth, SkipsGaps) {
  const auto means = smooth({kGap, 4, kGap, 1}, 3);
  EXPECT_TRUE(std::isnan(means[0]));
  EXPECT_DOUBLE_EQ(means[1], 4);
  EXPECT_TRUE(std::isnan(means[2]));
  EXPECT_DOUBLE_EQ(means[3], 2);
}

}  // namespace
}  // namespace lathe::report
