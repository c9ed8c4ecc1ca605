#include "lathe/nn/narrow_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "nn/kernels_testing.h"

namespace lathe::nn::kernels {
namespace {

class NarrowKernelsTest : public KernelsTest {};

INSTANTIATE_TEST_SUITE_P(Targets, NarrowKernelsTest, ::testing::ValuesIn(compiled_targets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

std::vector<float> waves(int64_t count, double step) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(std::sin(step * static_cast<double>(i))));
  return values;
}

TEST_P(NarrowKernelsTest, EqualTheProductInDoubleAndTouchNothingBeside) {
  for (const int64_t columns : {1, 3, 7, 8, 9, 15, 16}) {
    for (const int64_t rows : {1, 2, 5, 6, 13, 41}) {
      for (const int64_t inner : {1, 2, 33, 384}) {
        const int64_t width = narrow_columns(columns), a_stride = inner + 3, c_stride = columns + 2;
        const std::vector<float> a = waves((rows - 1) * a_stride + inner, 0.7), before = waves(rows * c_stride, 1.9);
        std::vector<float> b = waves(inner * width, 1.3);
        for (const float beta : {0.0f, 1.0f}) {
          std::vector<float> c = before;
          if (beta == 0) std::fill(c.begin(), c.end(), NAN);
          narrow_gemm(a.data(), a_stride, b.data(), c.data(), c_stride, rows, columns, inner, 1.5f, beta);
          for (int64_t i = 0; i < rows; ++i) {
            for (int64_t j = 0; j < c_stride; ++j) {
              const auto at = static_cast<size_t>(i * c_stride + j);
              if (j >= columns) {
                ASSERT_TRUE(beta == 0 ? std::isnan(c[at]) : c[at] == before[at]) << "beside the columns";
                continue;
              }
              double sum = beta == 0 ? 0 : static_cast<double>(before[at]);
              for (int64_t k = 0; k < inner; ++k)
                sum += 1.5 * static_cast<double>(a[static_cast<size_t>(i * a_stride + k)]) *
                       static_cast<double>(b[static_cast<size_t>(k * width + j)]);
              ASSERT_NEAR(static_cast<double>(c[at]), sum, 2e-7 * static_cast<double>(inner + 1))
                  << rows << " x " << columns << " x " << inner << " at " << i << ", " << j;
            }
          }
        }
      }
    }
  }
}

TEST_P(NarrowKernelsTest, TheBitsOfARowDoNotDependOnTheSplit) {
  constexpr int64_t kRows = 23, kColumns = 8, kInner = 101;
  const std::vector<float> a = waves(kRows * kInner, 0.7), b = waves(kInner * kColumns, 1.3);
  std::vector<float> whole(kRows * kColumns), parts(kRows * kColumns);
  narrow_gemm(a.data(), kInner, b.data(), whole.data(), kColumns, kRows, kColumns, kInner, 1, 0);
  for (int64_t first = 0; first < kRows; ++first)
    narrow_gemm(a.data() + first * kInner, kInner, b.data(), parts.data() + first * kColumns, kColumns, 1, kColumns,
                kInner, 1, 0);
  EXPECT_EQ(whole, parts);
}

}  // namespace
}  // namespace lathe::nn::kernels
