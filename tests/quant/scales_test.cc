#include "lathe/quant/scales.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "lathe/quant/float16.h"
#include "quant/testing.h"

namespace lathe::quant {
namespace {

TEST(DynamicMap, HasTheValuesOfBitsandbytes) {
  const auto& map = dynamic_map();
  EXPECT_EQ(std::bit_cast<uint32_t>(map[0]), 0xBF7E3333u);  // no -1: the map is not symmetric
  EXPECT_EQ(map[127], 0);
  EXPECT_EQ(map[255], 1);
  for (size_t i = 1; i < 127; ++i) EXPECT_EQ(map[i], -map[254 - i]) << i;
  EXPECT_EQ(std::bit_cast<uint32_t>(map[128]), 0x3513A3B7u);
  for (size_t i = 1; i < map.size(); ++i) EXPECT_LT(map[i - 1], map[i]);
}

TEST(NestScales, ChoosesTheNearestValueInEveryBlock) {
  std::vector<float> absmax = lcg(11, 600);
  for (float& v : absmax) v = std::abs(v) + 0.5f;
  const NestedScales nested = nest_scales(absmax);
  ASSERT_EQ(nested.codes.size(), 600u);
  ASSERT_EQ(nested.absmax.size(), 3u);
  for (size_t i = 0; i < absmax.size(); ++i) {
    const double x = static_cast<double>((absmax[i] - nested.offset) * (1 / nested.absmax[i / 256]));
    const auto distance = [&](size_t code) { return std::abs(x - static_cast<double>(dynamic_map()[code])); };
    for (size_t code = 0; code < 256; ++code) ASSERT_LE(distance(nested.codes[i]), distance(code)) << i;
  }
}

TEST(NestScales, ReadsBackWithTwoRoundings) {
  const std::vector<float> absmax = lcg(17, 700);
  const NestedScales nested = nest_scales(absmax);
  Scales scales;
  scales.codes = nested.codes.data();
  scales.nested_absmax = nested.absmax.data();
  scales.map = dynamic_map().data();
  scales.offset = nested.offset;
  std::vector<float> read(650);
  read_scales(scales, 50, 650, read.data());
  for (size_t i = 0; i < read.size(); ++i) {
    const volatile float product = dynamic_map()[nested.codes[i + 50]] * nested.absmax[(i + 50) / 256];
    EXPECT_EQ(read[i], product + nested.offset) << i;
    // The widest gap is 0.0141 of the block's largest deviation, and -1 decodes as -0.99297.
    EXPECT_NEAR(read[i], absmax[i + 50], 0.0072f * nested.absmax[(i + 50) / 256]) << i;
  }
}

TEST(NestScales, KeepsEqualScales) {
  const NestedScales nested = nest_scales(std::vector<float>(5, 0.25f));
  EXPECT_EQ(nested.offset, 0.25f);
  EXPECT_EQ(nested.codes, std::vector<uint8_t>(5, 127));
  EXPECT_TRUE(nest_scales({}).codes.empty());
}

TEST(Float16, RoundsToNearestEvenOverAllOfItsRange) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = from_float16(half);
    if (std::isnan(value)) continue;
    ASSERT_EQ(to_float16(value), half) << bits;
    if ((bits & 0x7FFF) >= 0x7BFF) continue;
    const float next = from_float16(static_cast<uint16_t>(bits + 1)), middle = (value + next) / 2;
    ASSERT_EQ(to_float16(middle), bits % 2 == 0 ? half : half + 1) << bits;
    ASSERT_EQ(to_float16(std::nextafter(middle, next)), half + 1) << bits;
  }
  EXPECT_EQ(to_float16(65519.996f), 0x7BFF);
  EXPECT_EQ(to_float16(65520.0f), 0x7C00);
}

TEST(BFloat16, RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x3F808000u)), 0x3F80);
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x3F818000u)), 0x3F82);
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x3F808001u)), 0x3F81);
  EXPECT_TRUE(std::isnan(from_bfloat16(to_bfloat16(std::nanf("")))));
}

}  // namespace
}  // namespace lathe::quant
