#pragma once

#include <cstdint>

/// Fused float32 passes of gated experts; as kernels.h.
namespace lathe::nn::kernels {

/// y[r, c] = scale[r] silu(g) u with rows h[r] = [g | u]; silu(g) = g / (1 + exp(-g)). scale may be null: 1.
/// h [rows, 2 columns], y [rows, columns].
void swiglu_forward(const float* h, const float* scale, float* y, int64_t rows, int64_t columns);

/// From dy, the gradient of silu(g) u times what follows it: dscale[r] = Σ_c dy silu(g) u, dh = scale · [dy u silu'(g)
/// | dy silu(g)], and y = scale silu(g) u again. scale and dscale may be null together; y may be dy or null; dh may be
/// h.
void swiglu_backward(const float* h, const float* scale, const float* dy, float* dh, float* y, float* dscale,
                     int64_t rows, int64_t columns);

/// out[index[r]] += rows[r] for rows of `columns` elements; no index twice.
void add_rows(const float* rows, const int64_t* index, float* out, int64_t num_rows, int64_t columns);

}  // namespace lathe::nn::kernels
