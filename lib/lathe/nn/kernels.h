#pragma once

#include <cstdint>
#include <string>

/// Float32 loops for the CPU, compiled for several instruction sets and chosen when first called. Single-threaded:
/// callers split rows, and the result does not depend on how. No pointer needs alignment; nothing is touched past the
/// last element. What is not finite in the input stays so in the result, also where dropout multiplies it by 0; a score
/// of -inf has probability 0.
namespace lathe::nn::kernels {

/// Which elements survive dropout: element i (its place in the tensor) is kept iff a hash of (key, i) says so, with
/// probability 1 - p, 0 <= p < 1, and kept values are scaled by 1 / (1 - p). p = 0 keeps everything. The mask is the
/// same on every instruction set and in every kernel.
struct Dropout {
  uint64_t key = 0;
  float p = 0;
};

/// y = x masked and scaled; element 0 has place first_index. y may be x. n elements.
void dropout(const float* x, float* y, int64_t first_index, int64_t n, Dropout dropout);

/// y = v Φ(v) of v = x + bias, within 3e-7 max(1, |v|) of the exact value; derivative = Φ(v) + v φ(v), within 3e-7.
/// bias [columns] may be null; derivative may be x. x, y, derivative [rows, columns].
void gelu_forward(const float* x, const float* bias, float* y, float* derivative, int64_t rows, int64_t columns);
/// The same with Φ(v) ≈ (1 + tanh(√(2/π) (v + 0.044715 v³))) / 2.
void gelu_tanh_forward(const float* x, const float* bias, float* y, float* derivative, int64_t rows, int64_t columns);

/// out = a · b element by element; out may be a or b.
void multiply(const float* a, const float* b, float* out, int64_t n);

/// Row by row: s = dropout(h + bias) + residual, x̂ = (s - mean) / √(var + eps), y = x̂ gamma + beta.
/// h is overwritten by x̂; rstd [rows] gets 1 / √(var + eps). bias may be null. Pointers are to row first_row; element
/// (r, c) has place (first_row + r) columns + c in the mask.
void residual_layer_norm_forward(float* h, const float* bias, const float* residual, const float* gamma,
                                 const float* beta, float* y, float* rstd, int64_t first_row, int64_t rows,
                                 int64_t columns, float eps, Dropout dropout);
/// y = x gamma + beta, row by row: y of residual_layer_norm_forward() from its x̂, to the bit. x, y [rows, columns].
void scale_shift(const float* x, const float* gamma, const float* beta, float* y, int64_t rows, int64_t columns);
/// d_residual = the gradient of s; d_h = d_residual under the same mask. d_h may be d_residual when p = 0.
void residual_layer_norm_backward(const float* dy, const float* xhat, const float* rstd, const float* gamma,
                                  float* d_residual, float* d_h, int64_t first_row, int64_t rows, int64_t columns,
                                  Dropout dropout);

/// Rows of scores [rows, columns], ld apart, become dropout(softmax(row)); lse[r] = log Σ exp. Element (r, c) has place
/// first_index + r columns + c in the mask. Without columns lse[r] = -inf. Fastest where ld is a multiple of 16: the
/// masked store that ends a row then does not delay the loads of the next.
void softmax_forward(float* scores, float* lse, int64_t rows, int64_t columns, int64_t ld, uint64_t first_index,
                     Dropout dropout);
/// From the raw scores again: P = exp(scores - lse); scores becomes P mask, grad (the gradient of the dropped
/// probabilities) becomes P (grad mask - delta[r]).
void softmax_backward(float* scores, float* grad, const float* lse, const float* delta, int64_t rows, int64_t columns,
                      int64_t ld, uint64_t first_index, Dropout dropout);

/// sums[r] = Σ_c a[r, c] b[r, c]; rows lda and ldb apart.
void row_dots(const float* a, int64_t lda, const float* b, int64_t ldb, float* sums, int64_t rows, int64_t columns);

/// The instruction set in use, for bug reports: "AVX3", "AVX2", "SSE4", ...
std::string chosen_target();
/// Restricts the kernels to the portable baseline, for tests and for doubt. The environment variable
/// LATHE_KERNELS=portable does the same at start.
void force_portable(bool portable);

}  // namespace lathe::nn::kernels
