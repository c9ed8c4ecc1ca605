#include "lathe/optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace lathe::optim {
namespace {

TEST(Schedule, WarmsUpFromZero) {
  const Schedule schedule{ScheduleType::Constant, 4, 100, 0};
  EXPECT_EQ(schedule.factor(0), 0);
  EXPECT_EQ(schedule.factor(3), 0.75);
  EXPECT_EQ(schedule.factor(4), 1);
  EXPECT_EQ(schedule.factor(99), 1);
}

TEST(Schedule, LinearReachesZeroAtTheEnd) {
  const Schedule schedule{ScheduleType::Linear, 10, 110, 0};
  EXPECT_EQ(schedule.factor(10), 1);
  EXPECT_EQ(schedule.factor(60), 0.5);
  EXPECT_EQ(schedule.factor(110), 0);
  EXPECT_EQ(schedule.factor(200), 0);
}

TEST(Schedule, CosineEndsAtTheMinimumRatio) {
  const Schedule schedule{ScheduleType::Cosine, 0, 100, 0.1};
  EXPECT_EQ(schedule.factor(0), 1);
  EXPECT_NEAR(schedule.factor(50), 0.55, 1e-12);
  EXPECT_NEAR(schedule.factor(25), 0.1 + 0.9 * 0.5 * (1 + std::sqrt(0.5)), 1e-12);
  EXPECT_NEAR(schedule.factor(100), 0.1, 1e-12);
}

TEST(Schedule, SurvivesARunShorterThanItsWarmUp) {
  const Schedule schedule{ScheduleType::Linear, 10, 5, 0};
  EXPECT_EQ(schedule.factor(4), 0.4);
  EXPECT_EQ(schedule.factor(12), 0);
}

}  // namespace
}  // namespace lathe::optim
