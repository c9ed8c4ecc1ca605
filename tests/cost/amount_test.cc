#include "lathe/cost/amount.h"

#include <gtest/gtest.h>

namespace lathe::cost {
namespace {

TEST(Amount, IsTextAtEverySize) {
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(1023), "1023 B");
  EXPECT_EQ(bytes_text(1536), "1.5 KiB");
  EXPECT_EQ(bytes_text(0x1p53), "8.0 PiB");
  EXPECT_EQ(bytes_text(0x1p64), "16.0 EiB");
  EXPECT_EQ(bytes_text(3 * 0x1p80), "3.0 YiB");
  EXPECT_EQ(bytes_text(1e31), "1e+31 B");
  EXPECT_EQ(count_text(6738415616), "6.738 G");
  EXPECT_EQ(count_text(999e15), "999 P");
  EXPECT_EQ(count_text(5.94e40), "5.94e+40");
}

TEST(Amount, IsAnIntegerAsLongAsItIsExact) {
  EXPECT_EQ(whole(6738415616).dump(), "6738415616");
  EXPECT_EQ(whole(0x1p53).dump(), "9007199254740992");
  EXPECT_EQ(whole(1e30).dump(), "1e+30");
}

}  // namespace
}  // namespace lathe::cost
