#include "lathe/quant/rows.h"

#include <algorithm>
#include <array>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lathe/quant/rows.cc"
#include <hwy/foreach_target.h>  // includes this file once per instruction set
//
#include <hwy/highway.h>

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

// A tile of kTileRows rows and four columns becomes four vectors.
using Tile = hn::FixedTag<float, HWY_TARGET == HWY_SCALAR ? 1 : HWY_TARGET <= HWY_AVX3 ? 16 : 4>;
constexpr int64_t kTileRows = hn::MaxLanes(Tile()), kTileColumns = HWY_TARGET == HWY_SCALAR ? 1 : 4;

// Four values of the rows 0, 4, 8, 12, as far as the tile has them.
HWY_INLINE hn::Vec<Tile> load_fours(const float* rows, int64_t row_stride) {
#if HWY_TARGET <= HWY_AVX3
  const hn::FixedTag<float, 4> d4;
  const hn::FixedTag<float, 8> d8;
  const auto pair = [&](const float* at)
                        HWY_ATTR { return hn::Combine(d8, hn::LoadU(d4, at + 4 * row_stride), hn::LoadU(d4, at)); };
  return hn::Combine(Tile(), pair(rows + 8 * row_stride), pair(rows));
#else
  (void)row_stride;
  return hn::LoadU(Tile(), rows);
#endif
}

// out[k stride + r] = rows[r row_stride + k], k < kTileColumns, r < kTileRows.
HWY_INLINE void transpose_tile(const float* rows, int64_t row_stride, float* out, int64_t stride) {
#if HWY_TARGET == HWY_SCALAR
  (void)row_stride, (void)stride;
  *out = *rows;
#else
  const Tile d;
  const auto a = load_fours(rows, row_stride), b = load_fours(rows + row_stride, row_stride),
             c = load_fours(rows + 2 * row_stride, row_stride), e = load_fours(rows + 3 * row_stride, row_stride);
  const auto ac = hn::InterleaveLower(d, a, c), be = hn::InterleaveLower(d, b, e);
  const auto ac_upper = hn::InterleaveUpper(d, a, c), be_upper = hn::InterleaveUpper(d, b, e);
  hn::StoreU(hn::InterleaveLower(d, ac, be), d, out);
  hn::StoreU(hn::InterleaveUpper(d, ac, be), d, out + stride);
  hn::StoreU(hn::InterleaveLower(d, ac_upper, be_upper), d, out + 2 * stride);
  hn::StoreU(hn::InterleaveUpper(d, ac_upper, be_upper), d, out + 3 * stride);
#endif
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
        decode(weight, rounded, at, at + n, values.data() + r * kStride);
      }
      float* target = out + column * out_stride + row - first_row;
      for (int64_t k = 0; k < n; k += kTileColumns) {
        for (int64_t r = 0; r < rows; r += kTileRows) {
          const float* tile = values.data() + r * kStride + k;
          float* place = target + k * out_stride + r;
          if (k + kTileColumns <= n && r + kTileRows <= rows) {
            transpose_tile(tile, kStride, place, out_stride);
            continue;
          }
          for (int64_t i = 0; i < std::min(kTileColumns, n - k); ++i)
            for (int64_t j = 0; j < std::min(kTileRows, rows - r); ++j)
              place[i * out_stride + j] = tile[j * kStride + i];
        }
      }
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
HWY_EXPORT(decode_as_columns);

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
  HWY_DYNAMIC_DISPATCH(decode_as_columns)(weight, columns, rounded, first_row, last_row, out, out_stride);
}

}  // namespace lathe::quant
#endif  // HWY_ONCE
