#pragma once

#include <cstdint>

namespace lathe::quant {

/// out[k · out_stride + r] = in[r · in_stride + k] for rows r and columns k. Single-threaded; as blockwise.h.
void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out, int64_t out_stride);

}  // namespace lathe::quant
