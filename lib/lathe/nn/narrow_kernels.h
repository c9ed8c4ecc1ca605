#pragma once

#include <cstdint>

/// Products of float32 matrices with few columns, as adapters and heads have them; as kernels.h.
namespace lathe::nn::kernels {

constexpr int64_t kMostNarrow = 16;

/// The columns to which narrow_gemm() wants b padded: 8 or 16 for up to as many.
constexpr int64_t narrow_columns(int64_t columns) { return columns <= 8 ? 8 : kMostNarrow; }

/// c = alpha a b + beta c for a [rows, inner], b [inner, narrow_columns(columns)], c [rows, columns <= kMostNarrow];
/// rows of a and c lie a_stride and c_stride apart, those of b side by side. With beta = 0 c is not read.
void narrow_gemm(const float* a, int64_t a_stride, const float* b, float* c, int64_t c_stride, int64_t rows,
                 int64_t columns, int64_t inner, float alpha, float beta);

}  // namespace lathe::nn::kernels
