#include "lathe/base/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace lathe {
namespace {

TEST(RandomPermutation, IsAFunctionOfTheKeyAndHoldsEachIndexOnce) {
  const auto order = random_permutation(1000, make_key(1, 2));
  EXPECT_EQ(order, random_permutation(1000, make_key(1, 2)));
  EXPECT_NE(order, random_permutation(1000, make_key(2, 1)));
  EXPECT_EQ(std::set<int64_t>(order.begin(), order.end()).size(), 1000u);
  EXPECT_TRUE(random_permutation(0, 1).empty());
}

TEST(RandomUniform, HasTheMeanAndVarianceOfTheUniformDistribution) {
  constexpr int kDraws = 1 << 20;
  double sum = 0, squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double x = random_uniform(make_key(7, name_key("test")), static_cast<uint64_t>(i));
    sum += x;
    squares += x * x;
  }
  // Four standard errors of the mean of U(0, 1): 4 sqrt(1/12 / n); of its square: 4 sqrt(4/45 / n).
  EXPECT_NEAR(sum / kDraws, 0.5, 4 * std::sqrt(1.0 / 12 / kDraws));
  EXPECT_NEAR(squares / kDraws, 1.0 / 3, 4 * std::sqrt(4.0 / 45 / kDraws));
}

}  // namespace
}  // namespace lathe
