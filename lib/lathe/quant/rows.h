#pragma once

#include <cstdint>

#include "lathe/quant/blockwise.h"

namespace lathe::quant {

/// out[m · out_stride + n - first_row] = Σ_k x[m, k] Ŵ[n, k] for rows n in [first_row, last_row) of W [.., columns]:
/// the product for few rows x [num_x <= kMaxRows, columns], which decodes each row of W once, into cache. `rounded`: Ŵ
/// is rounded to bfloat16. Single-threaded; how callers split rows does not change the result.
constexpr int64_t kMaxRows = 16;
void multiply_rows(const Packed& weight, int64_t columns, bool rounded, int64_t first_row, int64_t last_row,
                   const float* x, int64_t num_x, float* out, int64_t out_stride);

/// out[k · out_stride + n - first_row] = Ŵ[n, k]: the same rows decoded, as columns. Single-threaded.
void decode_as_columns(const Packed& weight, int64_t columns, bool rounded, int64_t first_row, int64_t last_row,
                       float* out, int64_t out_stride);

}  // namespace lathe::quant
