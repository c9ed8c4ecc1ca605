#include "lathe/optim/schedule.h"

#include <cmath>

#include "golden.h"
#include "lathe/io/tensors.h"
#include "tensor_expect.h"

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

// tests/golden/optim/optim.py made the factors, with transformers.
TEST(Schedule, EqualsTransformersOverTwoHundredSteps) {
  const std::vector<std::pair<std::string, Schedule>> schedules = {
      {"constant", {ScheduleType::Constant, 20, 200}},
      {"linear", {ScheduleType::Linear, 20, 200}},
      {"cosine", {ScheduleType::Cosine, 20, 200}},
      {"cosine_min", {ScheduleType::Cosine, 20, 200, 0.1}},
      {"inverse_sqrt", {ScheduleType::InverseSqrt, 20, 200}},
      {"inverse_sqrt_cold", {ScheduleType::InverseSqrt, 0, 200}},
      {"wsd", {ScheduleType::Wsd, 20, 200, 0.1, 60}}};
  const io::TensorFile file(testing::golden("optim/optim.safetensors"));
  for (const auto& [name, schedule] : schedules) {
    std::vector<double> factors;
    for (int64_t step = 0; step < 200; ++step) factors.push_back(schedule.factor(step));
    SCOPED_TRACE(name);
    testing::expect_close(torch::tensor(factors, at::kDouble), file.tensor("schedule." + name), 1e-14, 0);
  }
}

TEST(Schedule, WsdWithoutRoomForItsStablePartDecaysAfterTheWarmUp) {
  const Schedule schedule{ScheduleType::Wsd, 10, 20, 0, 15};
  EXPECT_EQ(schedule.factor(9), 0.9);
  EXPECT_EQ(schedule.factor(10), 1);
  EXPECT_LT(schedule.factor(11), 1);
}

}  // namespace
}  // namespace lathe::optim
