#include "lathe/quant/rows.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lathe/quant/float16.h"
#include "quant/testing.h"

namespace lathe::quant {
namespace {

struct Weight {
  explicit Weight(int64_t count_) : count(count_), codes(packed_bytes(count)), absmax(num_blocks(count, 64)) {
    const std::vector<float> values = lcg(static_cast<uint32_t>(count), count);
    quantize(QuantType::NF4, Float::F32, values.data(), count, 64, 0, num_blocks(count, 64), codes.data(),
             absmax.data());
    packed.codes = codes.data();
    packed.scales.absmax = absmax.data();
    packed.book = code_book(QuantType::NF4).data();
  }
  std::vector<float> dense(bool rounded) const {
    std::vector<float> values(static_cast<size_t>(count));
    rounded ? dequantize_rounded(packed, 0, count, values.data())
            : dequantize(packed, 0, count, Float::F32, values.data());
    return values;
  }

  int64_t count;
  Guarded<uint8_t> codes;
  Guarded<float> absmax;
  Packed packed;
};

class RowsTest : public TargetTest {};
INSTANTIATE_TEST_SUITE_P(Targets, RowsTest, ::testing::ValuesIn(supported_targets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

TEST_P(RowsTest, MultiplyByTheDecodedWeightWithinTheRoundingOfASum) {
  for (const int64_t columns : {1, 7, 33, 64, 96, 130, 4128, 5001}) {
    constexpr int64_t kRows = 5;
    const Weight weight(kRows * columns);
    for (const bool rounded : {false, true}) {
      const std::vector<float> dense = weight.dense(rounded);
      for (const int64_t num_x : {1, 3, 7, 8, 12}) {
        const Guarded<float> x(lcg(99, num_x * columns)), out(num_x * 6);
        multiply_rows(weight.packed, columns, rounded, 1, kRows, x.data(), num_x, out.data(), 6);
        for (int64_t m = 0; m < num_x; ++m) {
          for (int64_t n = 1; n < kRows; ++n) {
            double exact = 0, size = 0;
            for (int64_t k = 0; k < columns; ++k) {
              const double product = static_cast<double>(x.data()[m * columns + k]) *
                                     static_cast<double>(dense[static_cast<size_t>(n * columns + k)]);
              exact += product;
              size += std::abs(product);
            }
            EXPECT_NEAR(out.data()[m * 6 + n - 1], exact, static_cast<double>(columns) * 0x1p-23 * size);
          }
          EXPECT_EQ(out.data()[m * 6 + 4], 0);  // beyond the rows asked for
        }
      }
    }
  }
}

TEST_P(RowsTest, DecodeAsColumnsToTheBitsOfRows) {
  for (const int64_t columns : {1, 7, 33, 64, 130, 1030}) {
    for (const int64_t rows : {1, 3, 4, 16, 22}) {
      const int64_t first = 2, all = rows + first, stride = rows + 3, count = all * columns;
      const Weight weight(count);
      for (const bool rounded : {false, true}) {
        const std::vector<float> dense = weight.dense(rounded);
        const Guarded<float> out((columns - 1) * stride + rows);
        decode_as_columns(weight.packed, columns, rounded, first, all, out.data(), stride);
        for (int64_t k = 0; k < columns; ++k) {
          for (int64_t r = 0; r < stride && k * stride + r < (columns - 1) * stride + rows; ++r) {
            const float expected = r < rows ? dense[static_cast<size_t>((first + r) * columns + k)] : 0;
            ASSERT_EQ(out.data()[k * stride + r], expected) << columns << " columns, row " << r << ", column " << k;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace lathe::quant
