#include "lathe/quant/rows.h"

#include <algorithm>
#include <array>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lathe/quant/rows.cc"
#include <hwy/foreach_target.h>  // includes this file once per instruction set
//
#include <hwy/highway.h>

#include "lathe/quant/transpose.h"

HWY_BEFORE_NAMESPACE();
namespace lathe::quant::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using F = hn::ScalableTag<float>;

// out[m stride] += Σ_k x[m columns + k] w[k], k < n, for `Rows` rows of x.
template <int64_t Rows>
void add_dots(const float* w, const float* x, int64_t columns, int64_t n, float* out, int64_t stride) {
  const F d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<F> sums[Rows], more[Rows];
  for (int64_t m = 0; m < Rows; ++m) sums[m] = more[m] = hn::Zero(d);
  int64_t k = 0;
  for (; k + 2 * lanes <= n; k += 2 * lanes) {
    const auto w0 = hn::LoadU(d, w + k), w1 = hn::LoadU(d, w + k + lanes);
    for (int64_t m = 0; m < Rows; ++m) {
      sums[m] = hn::MulAdd(w0, hn::LoadU(d, x + m * columns + k), sums[m]);
      more[m] = hn::MulAdd(w1, hn::LoadU(d, x + m * columns + k + lanes), more[m]);
    }
  }
  for (int64_t m = 0; m < Rows; ++m) {
    float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sums[m], more[m])));
    for (int64_t i = k; i < n; ++i) sum += w[i] * x[m * columns + i];
    out[m * stride] += sum;
  }
}

void decode(const Packed& weight, bool rounded, int64_t begin, int64_t end, float* out) {
  if (rounded) {
    dequantize_rounded(weight, begin, end, out);
  } else {
    dequantize(weight, begin, end, Float::F32, out);
  }
}

void multiply_rows(const Packed& weight, int64_t columns, bool rounded, int64_t first_row, int64_t last_row,
                   const float* x, int64_t num_x, float* out, int64_t out_stride) {
  constexpr int64_t kChunk = 4096;
  HWY_ALIGN std::array<float, kChunk> values;
  for (int64_t row = first_row; row < last_row; ++row) {
    float* y = out + (row - first_row);
    for (int64_t m = 0; m < num_x; ++m) y[m * out_stride] = 0;
    for (int64_t begin = 0; begin < columns; begin += kChunk) {
      const int64_t n = std::min(kChunk, columns - begin), at = row * columns + begin;
      decode(weight, rounded, at, at + n, values.data());
      int64_t m = 0;
      for (; m + 4 <= num_x; m += 4)
        add_dots<4>(values.data(), x + m * columns + begin, columns, n, y + m * out_stride, out_stride);
      for (; m < num_x; ++m)
        add_dots<1>(values.data(), x + m * columns + begin, columns, n, y + m * out_stride, out_stride);
    }
  }
}

}  // namespace
}  // namespace lathe::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lathe::quant {
namespace {

HWY_EXPORT(multiply_rows);

// Of each 32 values the even ones first.
std::vector<float> split(const float* x, int64_t n) {
  std::vector<float> result(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i += 32) {
    for (int64_t k = 0; k < 16; ++k) {
      result[static_cast<size_t>(i + k)] = x[i + 2 * k];
      result[static_cast<size_t>(i + 16 + k)] = x[i + 2 * k + 1];
    }
  }
  return result;
}

// The same where every row is of whole 32s and the processor has the registers.
bool multiply_whole_rows(const Packed& weight, int64_t columns, bool rounded, int64_t first_row, int64_t last_row,
                         const float* x, int64_t num_x, float* out, int64_t out_stride) {
  if (columns % 32 != 0 || first_row == last_row) return false;
  const std::vector<float> halves = split(x, num_x * columns);
  for (int64_t row = first_row; row < last_row; ++row) {
    if (!dots_in_registers(weight, row * columns, (row + 1) * columns, rounded, halves.data(), num_x,
                           out + (row - first_row), out_stride))
      return false;
  }
  return true;
}

}  // namespace

void multiply_rows(const Packed& weight, int64_t columns, bool rounded, int64_t first_row, int64_t last_row,
                   const float* x, int64_t num_x, float* out, int64_t out_stride) {
  if (multiply_whole_rows(weight, columns, rounded, first_row, last_row, x, num_x, out, out_stride)) return;
  HWY_DYNAMIC_DISPATCH(multiply_rows)
  (weight, columns, rounded, first_row, last_row, x, num_x, out, out_stride);
}

void decode_as_columns(const Packed& weight, int64_t columns, bool rounded, int64_t first_row, int64_t last_row,
                       float* out, int64_t out_stride) {
  // Decoded into the first caches; a padded row, so that those of a tile meet in no set of them.
  constexpr int64_t kRows = 16, kColumns = 512, kStride = kColumns + 16;
  HWY_ALIGN std::array<float, kRows * kStride> values;
  for (int64_t row = first_row; row < last_row; row += kRows) {
    const int64_t rows = std::min(kRows, last_row - row);
    for (int64_t column = 0; column < columns; column += kColumns) {
      const int64_t n = std::min(kColumns, columns - column);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = (row + r) * columns + column;
        float* target = values.data() + r * kStride;
        rounded ? dequantize_rounded(weight, at, at + n, target) : dequantize(weight, at, at + n, Float::F32, target);
      }
      transpose(values.data(), kStride, rows, n, out + column * out_stride + row - first_row, out_stride);
    }
  }
}

}  // namespace lathe::quant
#endif  // HWY_ONCE
