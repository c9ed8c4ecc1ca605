#include "lathe/quant/transpose.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lathe/quant/transpose.cc"
#include <hwy/foreach_target.h>  // includes this file once per instruction set
//
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lathe::quant::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

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

void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; r += kTileRows) {
    for (int64_t k = 0; k < columns; k += kTileColumns) {
      const float* tile = in + r * in_stride + k;
      float* place = out + k * out_stride + r;
      if (r + kTileRows <= rows && k + kTileColumns <= columns) {
        transpose_tile(tile, in_stride, place, out_stride);
        continue;
      }
      for (int64_t i = 0; i < std::min(kTileColumns, columns - k); ++i)
        for (int64_t j = 0; j < std::min(kTileRows, rows - r); ++j) place[i * out_stride + j] = tile[j * in_stride + i];
    }
  }
}

}  // namespace
}  // namespace lathe::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lathe::quant {
namespace {

HWY_EXPORT(transpose);

}  // namespace

void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out, int64_t out_stride) {
  HWY_DYNAMIC_DISPATCH(transpose)(in, in_stride, rows, columns, out, out_stride);
}

}  // namespace lathe::quant
#endif  // HWY_ONCE
