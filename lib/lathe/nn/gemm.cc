#include "lathe/nn/gemm.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/record_function.h>
#include <dnnl.h>
#include <hwy/aligned_allocator.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <optional>
#include <utility>

#include "lathe/base/processor.h"
#include "lathe/nn/narrow_kernels.h"
#include "lathe/quant/transpose.h"

// Exported by libtorch_cpu; the C interfaces to it are not.
extern "C" void sgemm_(const char* trans_a, const char* trans_b, const int* m, const int* n, const int* k,
                       const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                       const float* beta, float* c, const int* ldc);

namespace lathe::nn {
namespace {

using at::Tensor;

std::atomic<bool> counting{false};
std::atomic<int64_t> counted{0};

// The signals that may come at any time.
sigset_t asynchronous_signals() {
  sigset_t signals;
  sigfillset(&signals);
  for (const int synchronous : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigdelset(&signals, synchronous);
  return signals;
}

// oneDNN's kernels point the stack pointer into their work space on the heap. A handler that ran there would write its
// frame over the blocks below, so that signals wait until the product is done.
class SignalsHeldBack {
 public:
  SignalsHeldBack() {
    const sigset_t signals = asynchronous_signals();
    ::pthread_sigmask(SIG_BLOCK, &signals, &before_);
    if (!at::in_parallel_region()) hold_back_in_workers();
  }
  ~SignalsHeldBack() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsHeldBack(const SignalsHeldBack&) = delete;
  SignalsHeldBack& operator=(const SignalsHeldBack&) = delete;

 private:
  // A signal to the process goes to any thread that takes it: OpenMP's never do from now on. Those that are made later,
  // for more threads, are made here.
  static void hold_back_in_workers() {
    thread_local int reached = 1;  // each caller has workers of its own
    const int threads = at::get_num_threads();
    if (threads <= reached) return;
    const pthread_t caller = ::pthread_self();
    at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      const sigset_t signals = asynchronous_signals();
      if (::pthread_equal(::pthread_self(), caller) == 0) ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    });
    reached = threads;
  }

  sigset_t before_{};
};

// The matrix as sgemm takes it; nothing when neither its rows nor its columns lie whole.
std::optional<SgemmOperand> operand(const Tensor& matrix) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  const float* data = matrix.const_data_ptr<float>();
  if (matrix.stride(1) == 1 && matrix.stride(0) >= columns) return SgemmOperand{data, matrix.stride(0), false};
  if (matrix.stride(0) == 1 && matrix.stride(1) >= rows) return SgemmOperand{data, matrix.stride(1), true};
  return std::nullopt;
}

// Working memory of a thread that multiplies, kept for its next product.
float* scratch(int64_t count) {
  thread_local hwy::AlignedFreeUniquePtr<float[]> memory;
  thread_local int64_t capacity = 0;
  if (capacity < count) {
    memory = hwy::AllocateAligned<float>(static_cast<size_t>(count));
    TORCH_CHECK(memory != nullptr, "no memory for ", count, " numbers of a product");
    capacity = count;
  }
  return memory.get();
}

// Few columns or rows: an adapter's side, a head.
bool is_narrow(SgemmShape shape, SgemmOperand b) {
  constexpr int64_t kRowsWorthPacking = 32;
  if (shape.columns <= kernels::kMostNarrow) return shape.rows >= kRowsWorthPacking;
  return uses_onednn(at::kFloat) && shape.rows <= kernels::kMostNarrow && !b.transposed;
}

// C of few rows in parts, whose lines of B find room in the cache side by side.
void few_rows(SgemmShape shape, SgemmOperand a, SgemmOperand b, float* c, int64_t c_stride) {
  constexpr int64_t kPart = 480;
  for (int64_t first = 0; first < shape.columns; first += kPart) {
    SgemmShape part = shape;
    part.columns = std::min(kPart, shape.columns - first);
    sgemm(part, a, {b.data + first, b.stride, false}, c + first, c_stride);
  }
}

// C of few columns, for which libraries fill no vectors: by the kernel for it, or where A is to be transposed, as
// Cᵀ = Bᵀ Aᵀ.
void few_columns(SgemmShape shape, SgemmOperand a, SgemmOperand b, float* c, int64_t c_stride) {
  if (a.transposed) {
    float* transposed = scratch(shape.rows * shape.columns);
    few_rows({shape.columns, shape.rows, shape.inner, shape.alpha, 0}, {b.data, b.stride, !b.transposed},
             {a.data, a.stride, false}, transposed, shape.rows);
    for (int64_t i = 0; i < shape.rows; ++i) {
      for (int64_t j = 0; j < shape.columns; ++j) {
        float& at = c[i * c_stride + j];
        at = transposed[j * shape.rows + i] + (shape.beta == 0 ? 0 : shape.beta * at);
      }
    }
    return;
  }
  count_flops(2 * shape.rows * shape.columns * shape.inner);
  const int64_t width = kernels::narrow_columns(shape.columns);
  const int64_t row_step = b.transposed ? 1 : b.stride, column_step = b.transposed ? b.stride : 1;
  float* packed = scratch(shape.inner * width);
  for (int64_t k = 0; k < shape.inner; ++k) {
    float* row = packed + k * width;
    for (int64_t j = 0; j < shape.columns; ++j) row[j] = b.data[k * row_step + j * column_step];
    std::fill(row + shape.columns, row + width, 0.0f);
  }
  constexpr int64_t kProductsWorthAThread = 1 << 18;
  const int64_t grain = 1 + kProductsWorthAThread / (shape.inner * shape.columns);
  at::parallel_for(0, shape.rows, grain, [&](int64_t first, int64_t last) {
    kernels::narrow_gemm(a.data + first * a.stride, a.stride, packed, c + first * c_stride, c_stride, last - first,
                         shape.columns, shape.inner, shape.alpha, shape.beta);
  });
}

// Where oneDNN is slow at a B that is to be transposed: on two threads by up to two fifths.
bool is_worth_transposing(SgemmShape shape, SgemmOperand b) {
  constexpr int64_t kMostColumns = 768, kLeastRows = 512, kLeastInner = 128;
  return b.transposed && uses_onednn(at::kFloat) && shape.columns <= kMostColumns && shape.rows >= kLeastRows &&
         shape.inner >= kLeastInner;
}

void by_transposed_parts(SgemmShape shape, SgemmOperand a, SgemmOperand b, float* c, int64_t c_stride) {
  constexpr int64_t kFloats = int64_t{1} << 20, kGroup = 48, kTransposedAtOnce = 16;
  const int64_t most = std::max(kFloats / shape.inner / kGroup, int64_t{1}) * kGroup;
  for (int64_t first = 0; first < shape.columns; first += most) {
    SgemmShape part = shape;
    part.columns = std::min(most, shape.columns - first);
    float* plain = scratch(part.columns * shape.inner);
    const int64_t groups = (part.columns + kTransposedAtOnce - 1) / kTransposedAtOnce;
    at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      const int64_t row = begin * kTransposedAtOnce, last = std::min(end * kTransposedAtOnce, part.columns);
      quant::transpose(b.data + (first + row) * b.stride, b.stride, last - row, shape.inner, plain + row, part.columns);
    });
    sgemm(part, a, {plain, part.columns, false}, c + first, c_stride);
  }
}

void multiply(SgemmShape shape, SgemmOperand a, SgemmOperand b, float* c, int64_t c_stride) {
  if (is_narrow(shape, b)) {
    (shape.columns <= kernels::kMostNarrow ? few_columns : few_rows)(shape, a, b, c, c_stride);
  } else if (is_worth_transposing(shape, b)) {
    by_transposed_parts(shape, a, b, c, c_stride);
  } else {
    sgemm(shape, a, b, c, c_stride);
  }
}

// out = alpha a b + beta out, where ATen is not to do it.
bool own_gemm(const Tensor& out, const Tensor& a, const Tensor& b, double alpha, float beta) {
  if (out.scalar_type() != at::kFloat || a.scalar_type() != at::kFloat || b.scalar_type() != at::kFloat) return false;
  if (!out.is_cpu() || out.numel() == 0 || a.size(1) == 0) return false;
  if (at::GradMode::is_enabled() && (a.requires_grad() || b.requires_grad() || out.requires_grad())) return false;
  const SgemmShape shape{out.size(0), out.size(1), a.size(1), static_cast<float>(alpha), beta};
  const auto left = operand(a), right = operand(b), result = operand(out);
  if (!left || !right || !result || result->transposed) return false;
  if (!uses_onednn(at::kFloat) && !is_narrow(shape, *right)) return false;
  RECORD_FUNCTION("lathe::gemm", (std::vector<c10::IValue>{a, b}));
  multiply(shape, *left, *right, out.data_ptr<float>(), result->stride);
  return true;
}

}  // namespace

bool uses_onednn(at::ScalarType type) {
  static const bool is_faster = has_avx512() && !is_intel();
  return is_faster && type == at::kFloat && at::globalContext().userEnabledMkldnn();
}

at::ScalarType product_type(at::ScalarType type) {
  static const bool is_fast = multiplies_bfloat16_fast();
  return type == at::kBFloat16 && !(is_fast && at::globalContext().userEnabledMkldnn()) ? at::kFloat : type;
}

Tensor product_operand(const Tensor& values, at::ScalarType type) { return values.to(type).to(product_type(type)); }

Tensor gemm(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() != at::kFloat) return at::mm(a, b);
  Tensor out = at::empty({a.size(0), b.size(1)}, a.options());
  if (own_gemm(out, a, b, 1, 0)) return out;
  out.reset();
  return at::mm(a, b);
}

void gemm_out(Tensor out, const Tensor& a, const Tensor& b) {
  if (!own_gemm(out, a, b, 1, 0)) at::mm_out(out, a, b);
}

void gemm_add(Tensor out, const Tensor& a, const Tensor& b, double alpha) {
  if (!own_gemm(out, a, b, alpha, 1)) out.addmm_(a, b, 1, alpha);
}

void sgemm(SgemmShape shape, SgemmOperand a, SgemmOperand b, float* c, int64_t c_stride) {
  if (shape.rows == 0 || shape.columns == 0) return;
  const char trans_a = a.transposed ? 'T' : 'N', trans_b = b.transposed ? 'T' : 'N';
  count_flops(2 * shape.rows * shape.columns * shape.inner);
  if (uses_onednn(at::kFloat)) {
    const SignalsHeldBack held_back;
    const auto status = dnnl_sgemm(trans_a, trans_b, shape.rows, shape.columns, shape.inner, shape.alpha, a.data,
                                   a.stride, b.data, b.stride, shape.beta, c, c_stride);
    if (status == dnnl_success) return;
  }
  // BLAS is column-major: C row-major = A B is Cᵀ = Bᵀ Aᵀ there.
  const int m = static_cast<int>(shape.columns), n = static_cast<int>(shape.rows), k = static_cast<int>(shape.inner);
  const int lda = static_cast<int>(b.stride), ldb = static_cast<int>(a.stride), ldc = static_cast<int>(c_stride);
  sgemm_(&trans_b, &trans_a, &m, &n, &k, &shape.alpha, b.data, &lda, a.data, &ldb, &shape.beta, c, &ldc);
}

void count_flops(int64_t flops) {
  if (counting.load(std::memory_order_relaxed)) counted.fetch_add(flops, std::memory_order_relaxed);
}

void set_counting_flops(bool on) { counting.store(on, std::memory_order_relaxed); }

int64_t counted_flops() { return counted.load(std::memory_order_relaxed); }

}  // namespace lathe::nn
