#include "lathe/data/windows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace lathe::data {
namespace {

using ::testing::ElementsAre;

TEST(Windows, EndWithTheirEpochAlsoWhenPartial) {
  Windows windows(7, 2, 2, /*shuffle=*/false, 0);
  EXPECT_EQ(windows.steps_per_epoch(), 2);
  EXPECT_THAT(windows.window(0), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
  EXPECT_THAT(windows.window(1), ElementsAre(ElementsAre(4, 5), ElementsAre(6)));
  EXPECT_THAT(windows.window(2), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
  EXPECT_DOUBLE_EQ(windows.epoch_after(1), 4.0 / 7);
  EXPECT_DOUBLE_EQ(windows.epoch_after(2), 1);
  EXPECT_DOUBLE_EQ(windows.epoch_after(3), 1 + 4.0 / 7);
}

TEST(Windows, HaveASingleMicroBatchWhenTheRestIsSmall) {
  Windows windows(5, 2, 2, false, 0);
  EXPECT_THAT(windows.window(1), ElementsAre(ElementsAre(4)));
}

TEST(Windows, ShuffleEachEpochAnewAndSeekToAnyStep) {
  Windows forward(10, 3, 1, true, 7), seeking(10, 3, 1, true, 7), other(10, 3, 1, true, 8);
  std::vector<std::vector<int64_t>> epochs(2);
  for (int64_t step = 0; step < 8; ++step) {
    const auto window = forward.window(step);
    auto& epoch = epochs[static_cast<size_t>(step / 4)];
    epoch.insert(epoch.end(), window.front().begin(), window.front().end());
  }
  for (const auto& epoch : epochs) EXPECT_EQ(std::set<int64_t>(epoch.begin(), epoch.end()).size(), 10u);
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_EQ(seeking.window(6), forward.window(6));
  EXPECT_NE(other.window(0), forward.window(0));
}

}  // namespace
}  // namespace lathe::data
