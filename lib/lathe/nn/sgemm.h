#pragma once

#include <cstdint>

namespace lathe::nn {

/// One operand of sgemm, row-major with leading dimension `stride`; `transposed` when the product takes its transpose.
struct SgemmOperand {
  const float* data;
  int64_t stride;
  bool transposed;
};

struct SgemmShape {
  int64_t rows, columns, inner;
  float alpha, beta;
};

/// C [rows, columns] = alpha op(A) op(B) + beta C, row-major, by the BLAS inside LibTorch: for use within own parallel
/// regions, where it runs on the calling thread.
void sgemm(SgemmShape shape, SgemmOperand a, SgemmOperand b, float* c, int64_t c_stride);

/// Counts a product's operations (a multiply-add as two) for a profile, on any thread, while one asks for them. sgemm()
/// does; kernels that multiply by themselves call it once per product.
void count_flops(int64_t flops);
void set_counting_flops(bool on);
/// What was counted since the process began.
int64_t counted_flops();

}  // namespace lathe::nn
