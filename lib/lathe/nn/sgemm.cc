#include "lathe/nn/sgemm.h"

#include <atomic>

// Exported by libtorch_cpu; the C interfaces to it are not.
extern "C" void sgemm_(const char* trans_a, const char* trans_b, const int* m, const int* n, const int* k,
                       const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                       const float* beta, float* c, const int* ldc);

namespace lathe::nn {
namespace {

std::atomic<bool> counting{false};
std::atomic<int64_t> counted{0};

}  // namespace

void sgemm(SgemmShape shape, SgemmOperand a, SgemmOperand b, float* c, int64_t c_stride) {
  if (shape.rows == 0 || shape.columns == 0) return;
  // BLAS is column-major: C row-major = A B is Cᵀ = Bᵀ Aᵀ there.
  const int m = static_cast<int>(shape.columns), n = static_cast<int>(shape.rows), k = static_cast<int>(shape.inner);
  const int lda = static_cast<int>(b.stride), ldb = static_cast<int>(a.stride), ldc = static_cast<int>(c_stride);
  sgemm_(b.transposed ? "T" : "N", a.transposed ? "T" : "N", &m, &n, &k, &shape.alpha, b.data, &lda, a.data, &ldb,
         &shape.beta, c, &ldc);
  count_flops(2 * shape.rows * shape.columns * shape.inner);
}

void count_flops(int64_t flops) {
  if (counting.load(std::memory_order_relaxed)) counted.fetch_add(flops, std::memory_order_relaxed);
}

void set_counting_flops(bool on) { counting.store(on, std::memory_order_relaxed); }

int64_t counted_flops() { return counted.load(std::memory_order_relaxed); }

}  // namespace lathe::nn
