#include "lathe/quant/rows.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lathe/quant/float16.h"
#include "quant/testing.h"

namespace lathe::quant {
namespace {

class RowsTest : public TargetTest {};
INSTANTIATE_TEST_SUITE_P(Targets, RowsTest, ::testing::ValuesIn(supported_targets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

TEST_P(RowsTest, MultiplyByTheDecodedWeightWithinTheRoundingOfASum) {
  for (const int64_t columns : {1, 7, 33, 64, 96, 130, 4128, 5001}) {
    constexpr int64_t kRows = 5;
    const std::vector<float> w = lcg(static_cast<uint32_t>(columns), kRows * columns);
    const int64_t blocks = num_blocks(kRows * columns, 64);
    const Guarded<uint8_t> codes(packed_bytes(kRows * columns));
    const Guarded<float> absmax(blocks);
    quantize(QuantType::NF4, Float::F32, w.data(), kRows * columns, 64, 0, blocks, codes.data(), absmax.data());
    Packed packed;
    packed.codes = codes.data();
    packed.scales.absmax = absmax.data();
    packed.book = code_book(QuantType::NF4).data();
    std::vector<float> dense(w.size());
    for (const bool rounded : {false, true}) {
      rounded ? dequantize_rounded(packed, 0, kRows * columns, dense.data())
              : dequantize(packed, 0, kRows * columns, Float::F32, dense.data());
      for (const int64_t num_x : {1, 3, 7, 8, 12}) {
        const Guarded<float> x(lcg(99, num_x * columns)), out(num_x * 6);
        multiply_rows(packed, columns, rounded, 1, kRows, x.data(), num_x, out.data(), 6);
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

}  // namespace
}  // namespace lathe::quant
