#include "lathe/quant/blockwise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <numbers>
#include <random>

#include "lathe/quant/float16.h"
#include "quant/testing.h"

namespace lathe::quant {
namespace {

struct Quantised {
  std::vector<uint8_t> packed;
  std::vector<float> absmax;
};

Quantised quantise(QuantType type, const std::vector<float>& x, int64_t blocksize = 64) {
  const auto n = static_cast<int64_t>(x.size());
  const Guarded<float> in(x), absmax(num_blocks(n, blocksize));
  const Guarded<uint8_t> packed(packed_bytes(n));
  EXPECT_EQ(
      quantize(type, Float::F32, in.data(), n, blocksize, 0, num_blocks(n, blocksize), packed.data(), absmax.data()),
      -1);
  return {packed.values(), absmax.values()};
}

Packed view(QuantType type, const Quantised& q, int64_t blocksize = 64) {
  Packed packed;
  packed.codes = q.packed.data();
  packed.scales.absmax = q.absmax.data();
  packed.book = code_book(type).data();
  packed.blocksize = blocksize;
  return packed;
}

std::string hex(const std::vector<uint8_t>& bytes) {
  std::string text;
  for (const uint8_t byte : bytes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

std::vector<float> golden1() {
  std::vector<float> x;
  for (int i = 0; i < 64; ++i) x.push_back(static_cast<float>((37 * i + 11) % 127 - 63) / 64);
  return x;
}

INSTANTIATE_TEST_SUITE_P(Targets, TargetTest, ::testing::ValuesIn(supported_targets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

// Vectors on which the logic of bitsandbytes' default back end and an implementation of our own agree.
TEST_P(TargetTest, QuantisesTheGoldenVectors) {
  EXPECT_EQ(hex(quantise(QuantType::NF4, golden1()).packed),
            "14bf28e15c039e16d04ae27d14bf28e15cf39e16c03ae27d04bf28e15cf39e16");
  EXPECT_THAT(quantise(QuantType::NF4, golden1()).absmax, ::testing::ElementsAre(0.984375f));

  std::vector<float> small = lcg(12345, 64);
  for (float& v : small) v /= 32;
  const Quantised second = quantise(QuantType::NF4, small);
  EXPECT_EQ(hex(second.packed), "008ae1789d0cf0c65f5ffb5735b11e30639f0d33f8bba1fd6c3c9d626b8e5fc1");
  EXPECT_EQ(std::bit_cast<uint32_t>(second.absmax[0]), 0x3CFCC368u);

  std::vector<float> borders;
  for (const float t : decisions(QuantType::NF4).thresholds)
    borders.insert(borders.end(), {std::nextafter(t, -2.0f), t, std::nextafter(t, 2.0f)});
  borders.insert(borders.end(), {1, -1});
  borders.resize(64);
  EXPECT_EQ(hex(quantise(QuantType::NF4, borders).packed),
            "00111222333444555666777888999aaabbbcccdddeeeff077777777777777777");

  const Quantised zeros = quantise(QuantType::NF4, std::vector<float>(64));
  EXPECT_EQ(zeros.packed, std::vector<uint8_t>(32, 0x77));
  EXPECT_EQ(zeros.absmax[0], 0);
}

TEST_P(TargetTest, DequantisesTheGoldenVectorRoundedOnce) {
  const Quantised q = quantise(QuantType::NF4, golden1());
  std::vector<float> values(64);
  std::vector<uint16_t> halves(64);
  dequantize(view(QuantType::NF4, q), 0, 64, Float::F32, values.data());
  dequantize(view(QuantType::NF4, q), 0, 64, Float::BF16, halves.data());
  EXPECT_THAT(std::vector<float>(values.begin(), values.begin() + 4),
              ::testing::ElementsAre(-0.6853147745132446f, -0.27999699115753174f, 0.3326353132724762f, 0.984375f));
  EXPECT_THAT(std::vector<uint16_t>(halves.begin(), halves.begin() + 4),
              ::testing::ElementsAre(0xBF2F, 0xBE8F, 0x3EAA, 0x3F7C));
}

// Zero has code 0, a tiny positive number code 8 (which also decodes to 0), a tiny negative one code 0.
TEST_P(TargetTest, QuantisesFP4AsBitsandbytesDoes) {
  std::vector<float> x = {1, -1, 0, 1e-6f, -1e-6f, 0.5f, -0.25f, 0.0052f};
  x.resize(64);
  EXPECT_EQ(hex(quantise(QuantType::FP4, x).packed).substr(0, 8), "3b0805f1");
  std::vector<float> borders;
  for (const float t : {0.0859375f, 0.2083333432674408f, 0.2916666865348816f, 0.4166666865348816f, 0.5833333730697632f,
                        0.8333333730697632f})
    borders.insert(borders.end(), {std::nextafter(t, 0.0f), std::nextafter(t, 2.0f)});
  borders.push_back(1);
  borders.resize(64);
  EXPECT_EQ(hex(quantise(QuantType::FP4, borders).packed).substr(0, 14), "16677445522330");
}

TEST_P(TargetTest, DecodesEveryRangeOfEveryTypeAtAnyAlignment) {
  const std::vector<float> x = lcg(7, 517);
  for (const QuantType type : {QuantType::NF4, QuantType::FP4}) {
    const Quantised q = quantise(type, x);
    std::vector<float> expected;
    for (size_t i = 0; i < x.size(); ++i) {
      const auto byte = q.packed[i / 2];
      expected.push_back(code_book(type)[i % 2 == 0 ? byte >> 4 : byte & 15] * q.absmax[i / 64]);
    }
    const Guarded<uint8_t> codes(q.packed);
    Packed packed = view(type, q);
    packed.codes = codes.data();
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 517}, {1, 2}, {3, 3}, {63, 65}, {64, 128}, {5, 516}, {31, 517}, {128, 511}, {516, 517}, {2, 98}}) {
      const Guarded<float> full(end - begin), rounded(end - begin);
      const Guarded<uint16_t> brain(end - begin), half(end - begin);
      dequantize(packed, begin, end, Float::F32, full.data());
      dequantize(packed, begin, end, Float::BF16, brain.data());
      dequantize(packed, begin, end, Float::F16, half.data());
      dequantize_rounded(packed, begin, end, rounded.data());
      for (int64_t i = begin; i < end; ++i) {
        const float value = expected[static_cast<size_t>(i)];
        ASSERT_EQ(std::bit_cast<uint32_t>(full.data()[i - begin]), std::bit_cast<uint32_t>(value)) << i;
        ASSERT_EQ(brain.data()[i - begin], to_bfloat16(value)) << i;
        ASSERT_EQ(half.data()[i - begin], to_float16(value)) << i;
        ASSERT_EQ(rounded.data()[i - begin], from_bfloat16(to_bfloat16(value))) << i;
      }
    }
  }
}

TEST_P(TargetTest, MatchesThePortableBitsForEverySizeAndBlocksize) {
  for (const int64_t blocksize : {32, 64, 256, 4096}) {
    for (const int64_t n : {1, 2, 31, 33, 64, 65, 127, 300, 4097, 9001}) {
      const std::vector<float> x = lcg(static_cast<uint32_t>(n), n);
      for (const QuantType type : {QuantType::NF4, QuantType::FP4}) {
        choose_target(GetParam());
        const Quantised here = quantise(type, x, blocksize);
        choose_target(HWY_STATIC_TARGET);
        const Quantised portable = quantise(type, x, blocksize);
        ASSERT_EQ(here.packed, portable.packed) << n << " " << blocksize;
        ASSERT_EQ(here.absmax, portable.absmax) << n << " " << blocksize;
      }
    }
  }
}

TEST_P(TargetTest, ReadsSixteenBitInput) {
  const std::vector<float> x = lcg(3, 201);
  for (const Float dtype : {Float::BF16, Float::F16}) {
    std::vector<uint16_t> narrow;
    std::vector<float> wide;
    for (const float v : x) {
      narrow.push_back(dtype == Float::BF16 ? to_bfloat16(v) : to_float16(v));
      wide.push_back(dtype == Float::BF16 ? from_bfloat16(narrow.back()) : from_float16(narrow.back()));
    }
    const Guarded<uint16_t> in(narrow);
    Quantised q{std::vector<uint8_t>(101), std::vector<float>(4)};
    EXPECT_EQ(quantize(QuantType::NF4, dtype, in.data(), 201, 64, 0, 4, q.packed.data(), q.absmax.data()), -1);
    const Quantised expected = quantise(QuantType::NF4, wide);
    EXPECT_EQ(q.packed, expected.packed);
    EXPECT_EQ(q.absmax, expected.absmax);
  }
}

TEST_P(TargetTest, RequantisingADequantisedTensorChangesNothing) {
  const std::vector<float> x = lcg(99, 1000);
  for (const QuantType type : {QuantType::NF4, QuantType::FP4}) {
    const Quantised q = quantise(type, x);
    std::vector<float> values(x.size());
    dequantize(view(type, q), 0, 1000, Float::F32, values.data());
    const Quantised again = quantise(type, values);
    EXPECT_EQ(again.absmax, q.absmax);
    std::vector<float> twice(x.size());
    dequantize(view(type, again), 0, 1000, Float::F32, twice.data());
    EXPECT_EQ(twice, values);
    if (type == QuantType::NF4) {
      EXPECT_EQ(again.packed, q.packed);  // FP4 has two codes for 0
    }
  }
}

TEST_P(TargetTest, NamesTheFirstElementThatIsNotFinite) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    for (const int64_t place : {0, 63, 64, 150, 199}) {
      std::vector<float> x = lcg(5, 200);
      x[static_cast<size_t>(place)] = bad;
      std::vector<uint8_t> packed(100);
      std::vector<float> absmax(4);
      EXPECT_EQ(quantize(QuantType::NF4, Float::F32, x.data(), 200, 64, 0, 4, packed.data(), absmax.data()), place);
    }
  }
}

TEST_P(TargetTest, HasTheErrorsOfEachTypeOnNormalNumbers) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(1 << 20);
  for (float& v : x) v = normal(generator);
  const auto relative_error = [&](QuantType type, double& absolute) {
    const Quantised q = quantise(type, x);
    std::vector<float> values(x.size());
    dequantize(view(type, q), 0, 1 << 20, Float::F32, values.data());
    double squares = 0, total = 0;
    absolute = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double error = static_cast<double>(values[i]) - static_cast<double>(x[i]);
      squares += error * error;
      total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      absolute += std::abs(error) / static_cast<double>(x.size());
    }
    return squares / total;
  };
  // Means of 1e8 samples, +- what 2^20 samples leave.
  double absolute = 0;
  EXPECT_NEAR(relative_error(QuantType::NF4, absolute), 0.008464, 0.00006);
  EXPECT_NEAR(absolute, 0.072814, 0.0006);
  EXPECT_NEAR(relative_error(QuantType::FP4, absolute), 0.014875, 0.00012);
  EXPECT_NEAR(absolute, 0.096557, 0.0008);
}

}  // namespace
}  // namespace lathe::quant
