#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace lathe::nn {

/// A B, out = A B and out += alpha A B for matrices A [M, K], B [K, N], out [M, N], without autograd: by oneDNN where
/// uses_onednn(), else as ATen does it.
at::Tensor gemm(const at::Tensor& a, const at::Tensor& b);
void gemm_out(at::Tensor out, const at::Tensor& a, const at::Tensor& b);
void gemm_add(at::Tensor out, const at::Tensor& a, const at::Tensor& b, double alpha = 1);

/// Whether products of this type go to oneDNN: float32 where MKL, on another maker's processor than Intel's, leaves
/// AVX-512 unused (half the speed). LibTorch's switch (at::globalContext().setUserEnabledMkldnn) holds here too.
bool uses_onednn(at::ScalarType type);

/// The type in which values of `type` are multiplied: float32 for bfloat16 where the processor is not fast at it, since
/// ATen's own loops are tens of times slower. The products of two such values are exact in it.
at::ScalarType product_type(at::ScalarType type);
/// `values` rounded to `type`, as an operand of such a product.
at::Tensor product_operand(const at::Tensor& values, at::ScalarType type);

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

/// Signals wait until a product by oneDNN is done, and its worker threads take none: handlers need no care.
/// C [rows, columns] = alpha op(A) op(B) + beta C, row-major, by oneDNN or the BLAS inside LibTorch; within a parallel
/// region on the calling thread.
void sgemm(SgemmShape shape, SgemmOperand a, SgemmOperand b, float* c, int64_t c_stride);

/// Counts a product's operations (a multiply-add as two) for a profile, on any thread, while one asks for them. The
/// products above do that are no ATen operator; kernels that multiply by themselves call it once per product.
void count_flops(int64_t flops);
void set_counting_flops(bool on);
/// What was counted since the process began.
int64_t counted_flops();

}  // namespace lathe::nn
