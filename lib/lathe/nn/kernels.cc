#include "lathe/nn/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lathe/nn/kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per instruction set
//
#include <hwy/highway.h>

#include "lathe/base/random.h"

HWY_BEFORE_NAMESPACE();
namespace lathe::nn::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using U = hn::RebindToUnsigned<F>;
using I = hn::RebindToSigned<F>;
using VF = hn::Vec<F>;

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(F())); }

// The first `left` lanes from memory, the others `fill`.
HWY_INLINE VF load(const float* p, int64_t left, float fill = 0) {
  if (HWY_LIKELY(left >= lanes())) return hn::LoadU(F(), p);
  HWY_ALIGN float buffer[hn::MaxLanes(F())];
  std::fill_n(buffer, lanes(), fill);
  std::memcpy(buffer, p, static_cast<size_t>(left) * sizeof(float));
  return hn::Load(F(), buffer);
}

HWY_INLINE void store(VF v, float* p, int64_t left) {
  if (HWY_LIKELY(left >= lanes())) return hn::StoreU(v, F(), p);
  HWY_ALIGN float buffer[hn::MaxLanes(F())];
  hn::Store(v, F(), buffer);
  std::memcpy(p, buffer, static_cast<size_t>(left) * sizeof(float));
}

// Zero beyond the first `left` lanes.
HWY_INLINE VF only_first(VF v, int64_t left) {
  return HWY_LIKELY(left >= lanes()) ? v : hn::IfThenElseZero(hn::FirstN(F(), static_cast<size_t>(left)), v);
}

HWY_INLINE float sum(VF v) { return hn::GetLane(hn::SumOfLanes(F(), v)); }

// The factors of dropout, 0 or 1 / (1 - p), for consecutive places. The hash is two rounds of multiply-xorshift
// (Wellons 2018, "lowbias32") with one half of the key added before and the other between the rounds.
class Mask {
 public:
  Mask(Dropout dropout, uint64_t first_index) {
    const uint64_t mixed = mix_bits(dropout.key ^ (first_index >> 32 == 0 ? 0 : mix_bits(first_index >> 32)));
    key0_ = hn::Set(U(), static_cast<uint32_t>(mixed));
    key1_ = hn::Set(U(), static_cast<uint32_t>(mixed >> 32));
    below_threshold_ = hn::Set(I(), static_cast<int32_t>(static_cast<double>(dropout.p) * 2147483648.0) - 1);
    scale_ = hn::Set(F(), 1 / (1 - dropout.p));
    first_ = static_cast<uint32_t>(first_index);
  }
  HWY_INLINE VF factors(int64_t offset) const {
    auto x = hn::Xor(hn::Iota(U(), first_ + static_cast<uint32_t>(offset)), key0_);
    x = hn::Mul(hn::Xor(x, hn::ShiftRight<16>(x)), hn::Set(U(), 0x7FEB352Du));
    x = hn::Add(hn::Xor(x, hn::ShiftRight<15>(x)), key1_);
    x = hn::Mul(x, hn::Set(U(), 0x846CA68Bu));
    x = hn::Xor(x, hn::ShiftRight<16>(x));
    const auto kept = hn::Gt(hn::BitCast(I(), hn::ShiftRight<1>(x)), below_threshold_);
    return hn::IfThenElseZero(hn::RebindMask(F(), kept), scale_);
  }

 private:
  hn::Vec<U> key0_, key1_;
  hn::Vec<I> below_threshold_;
  VF scale_;
  uint32_t first_;
};

// exp within 2 ulp on [-87, 88], constant outside; NaN stays NaN. Cephes' split of the exponent and polynomial.
HWY_INLINE VF exp(VF x) {
  const F d;
  // By comparison and not by Min and Max, which may lose a NaN.
  const VF low = hn::Set(d, -87.0f), high = hn::Set(d, 88.0f);
  x = hn::IfThenElse(hn::Lt(x, low), low, hn::IfThenElse(hn::Gt(x, high), high, x));
  const VF n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504088896341f)));
  x = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  x = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), x);
  VF y = hn::Set(d, 1.9875691500e-4f);
  y = hn::MulAdd(y, x, hn::Set(d, 1.3981999507e-3f));
  y = hn::MulAdd(y, x, hn::Set(d, 8.3334519073e-3f));
  y = hn::MulAdd(y, x, hn::Set(d, 4.1665795894e-2f));
  y = hn::MulAdd(y, x, hn::Set(d, 1.6666665459e-1f));
  y = hn::MulAdd(y, x, hn::Set(d, 5.0000001201e-1f));
  y = hn::Add(hn::MulAdd(hn::Mul(y, x), x, x), hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(I(), n), hn::Set(I(), 127)));
  return hn::Mul(y, hn::BitCast(d, exponent));
}

void dropout_run(const float* x, float* y, uint64_t first_index, int64_t n, Dropout dropout) {
  const Mask mask(dropout, first_index);
  for (int64_t i = 0; i < n; i += lanes()) store(hn::Mul(load(x + i, n - i), mask.factors(i)), y + i, n - i);
}

void dropout(const float* x, float* y, int64_t first_index, int64_t n, Dropout dropout) {
  if (dropout.p == 0) {
    if (x != y) std::memcpy(y, x, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  // The hash counts in 32 bits: one run per block of 2^32 places.
  while (n > 0) {
    const int64_t run = std::min<int64_t>(n, (int64_t{1} << 32) - (first_index & 0xFFFFFFFF));
    dropout_run(x, y, static_cast<uint64_t>(first_index), run, dropout);
    x += run, y += run, first_index += run, n -= run;
  }
}

// Abramowitz and Stegun 7.1.26: 1 - erf(z) within 1.5e-7 for z >= 0, sharing exp(-z²) with the density.
struct ErfForm {
  HWY_INLINE static void apply(VF v, VF& y, VF& derivative) {
    const F d;
    const VF one = hn::Set(d, 1.0f), half = hn::Set(d, 0.5f);
    const VF z = hn::Mul(hn::Abs(v), hn::Set(d, 0.70710678118654752f));
    const VF e = exp(hn::Neg(hn::Mul(z, z)));
    const VF t = hn::Div(one, hn::MulAdd(z, hn::Set(d, 0.3275911f), one));
    VF q = hn::MulAdd(t, hn::Set(d, 1.061405429f), hn::Set(d, -1.453152027f));
    q = hn::MulAdd(t, q, hn::Set(d, 1.421413741f));
    q = hn::MulAdd(t, q, hn::Set(d, -0.284496736f));
    q = hn::MulAdd(t, q, hn::Set(d, 0.254829592f));
    q = hn::Mul(hn::Mul(hn::Mul(q, t), e), half);
    const VF cdf = hn::IfThenElse(hn::Lt(v, hn::Zero(d)), q, hn::Sub(one, q));
    y = hn::Mul(v, cdf);
    derivative = hn::MulAdd(hn::Mul(v, hn::Set(d, 0.39894228040143268f)), e, cdf);
  }
};

struct TanhForm {
  HWY_INLINE static void apply(VF v, VF& y, VF& derivative) {
    const F d;
    const VF one = hn::Set(d, 1.0f), half = hn::Set(d, 0.5f), cubic = hn::Set(d, 0.044715f),
             root = hn::Set(d, 0.79788456080286536f);
    const VF square = hn::Mul(v, v);
    const VF u = hn::Mul(hn::Mul(root, v), hn::MulAdd(cubic, square, one));
    const VF t = hn::Sub(one, hn::Div(hn::Set(d, 2.0f), hn::Add(exp(hn::Add(u, u)), one)));
    const VF cdf = hn::MulAdd(half, t, half);
    const VF slope = hn::Mul(root, hn::MulAdd(hn::Mul(hn::Set(d, 3.0f), cubic), square, one));
    y = hn::Mul(v, cdf);
    derivative = hn::MulAdd(hn::Mul(hn::Mul(half, v), hn::NegMulAdd(t, t, one)), slope, cdf);
  }
};

template <typename Form>
void gelu(const float* x, const float* bias, float* y, float* derivative, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; c += lanes()) {
      const int64_t at = r * columns + c, left = columns - c;
      VF v = load(x + at, left);
      if (bias != nullptr) v = hn::Add(v, load(bias + c, left));
      VF result, slope;
      Form::apply(v, result, slope);
      store(result, y + at, left);
      store(slope, derivative + at, left);
    }
  }
}

void gelu_forward(const float* x, const float* bias, float* y, float* derivative, int64_t rows, int64_t columns) {
  gelu<ErfForm>(x, bias, y, derivative, rows, columns);
}

void gelu_tanh_forward(const float* x, const float* bias, float* y, float* derivative, int64_t rows, int64_t columns) {
  gelu<TanhForm>(x, bias, y, derivative, rows, columns);
}

void multiply(const float* a, const float* b, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += lanes()) store(hn::Mul(load(a + i, n - i), load(b + i, n - i)), out + i, n - i);
}

// Normalises the row in place and returns 1 / √(var + eps); `total` is the row's sum.
HWY_INLINE float normalise_row(float* row, float total, const float* gamma, const float* beta, float* y,
                               int64_t columns, float eps) {
  const F d;
  const VF mean = hn::Set(d, total / static_cast<float>(columns));
  VF squares = hn::Zero(d);
  for (int64_t c = 0; c < columns; c += lanes()) {
    const VF centred = only_first(hn::Sub(load(row + c, columns - c), mean), columns - c);
    squares = hn::MulAdd(centred, centred, squares);
  }
  const float rstd = 1 / std::sqrt(sum(squares) / static_cast<float>(columns) + eps);
  const VF factor = hn::Set(d, rstd);
  for (int64_t c = 0; c < columns; c += lanes()) {
    const int64_t left = columns - c;
    const VF xhat = hn::Mul(hn::Sub(load(row + c, left), mean), factor);
    store(xhat, row + c, left);
    store(hn::MulAdd(xhat, load(gamma + c, left), load(beta + c, left)), y + c, left);
  }
  return rstd;
}

void residual_layer_norm_forward(float* h, const float* bias, const float* residual, const float* gamma,
                                 const float* beta, float* y, float* rstd, int64_t first_row, int64_t rows,
                                 int64_t columns, float eps, Dropout dropout) {
  for (int64_t r = 0; r < rows; ++r) {
    const Mask mask(dropout, static_cast<uint64_t>((first_row + r) * columns));
    float* row = h + r * columns;
    VF total = hn::Zero(F());
    for (int64_t c = 0; c < columns; c += lanes()) {
      const int64_t left = columns - c;
      VF s = load(row + c, left);
      if (bias != nullptr) s = hn::Add(s, load(bias + c, left));
      if (dropout.p > 0) s = hn::Mul(s, mask.factors(c));
      s = only_first(hn::Add(s, load(residual + r * columns + c, left)), left);
      store(s, row + c, left);
      total = hn::Add(total, s);
    }
    rstd[r] = normalise_row(row, sum(total), gamma, beta, y + r * columns, columns, eps);
  }
}

void residual_layer_norm_backward(const float* dy, const float* xhat, const float* rstd, const float* gamma,
                                  float* d_residual, float* d_h, int64_t first_row, int64_t rows, int64_t columns,
                                  Dropout dropout) {
  const F d;
  for (int64_t r = 0; r < rows; ++r) {
    const Mask mask(dropout, static_cast<uint64_t>((first_row + r) * columns));
    const int64_t row = r * columns;
    VF sums = hn::Zero(d), products = hn::Zero(d);
    for (int64_t c = 0; c < columns; c += lanes()) {
      const int64_t left = columns - c;
      const VF g = hn::Mul(load(dy + row + c, left), load(gamma + c, left));
      sums = hn::Add(sums, g);
      products = hn::MulAdd(g, load(xhat + row + c, left), products);
    }
    const VF mean = hn::Set(d, sum(sums) / static_cast<float>(columns));
    const VF slope = hn::Set(d, sum(products) / static_cast<float>(columns));
    const VF factor = hn::Set(d, rstd[r]);
    for (int64_t c = 0; c < columns; c += lanes()) {
      const int64_t left = columns - c;
      const VF g = hn::Mul(load(dy + row + c, left), load(gamma + c, left));
      const VF ds = hn::Mul(factor, hn::NegMulAdd(load(xhat + row + c, left), slope, hn::Sub(g, mean)));
      store(ds, d_residual + row + c, left);
      if (dropout.p > 0) store(hn::Mul(ds, mask.factors(c)), d_h + row + c, left);
    }
  }
}

void softmax_forward(float* scores, float* lse, int64_t rows, int64_t columns, int64_t ld, uint64_t first_index,
                     Dropout dropout) {
  const F d;
  for (int64_t r = 0; r < rows; ++r) {
    const Mask mask(dropout, first_index + static_cast<uint64_t>(r * columns));
    float* row = scores + r * ld;
    VF most = hn::Set(d, -INFINITY);
    for (int64_t c = 0; c < columns; c += lanes()) most = hn::Max(most, load(row + c, columns - c, -INFINITY));
    const float peak = hn::GetLane(hn::MaxOfLanes(d, most));
    VF total = hn::Zero(d);
    for (int64_t c = 0; c < columns; c += lanes()) {
      const int64_t left = columns - c;
      const VF e = only_first(exp(hn::Sub(load(row + c, left), hn::Set(d, peak))), left);
      store(e, row + c, left);
      total = hn::Add(total, e);
    }
    const float normaliser = sum(total);
    lse[r] = peak + std::log(normaliser);
    const VF inverse = hn::Set(d, 1 / normaliser);
    for (int64_t c = 0; c < columns; c += lanes()) {
      VF p = hn::Mul(load(row + c, columns - c), inverse);
      if (dropout.p > 0) p = hn::Mul(p, mask.factors(c));
      store(p, row + c, columns - c);
    }
  }
}

void softmax_backward(float* scores, float* grad, const float* lse, const float* delta, int64_t rows, int64_t columns,
                      int64_t ld, uint64_t first_index, Dropout dropout) {
  const F d;
  for (int64_t r = 0; r < rows; ++r) {
    const Mask mask(dropout, first_index + static_cast<uint64_t>(r * columns));
    float *row = scores + r * ld, *g = grad + r * ld;
    const VF shift = hn::Set(d, lse[r]), mean = hn::Set(d, delta[r]);
    for (int64_t c = 0; c < columns; c += lanes()) {
      const int64_t left = columns - c;
      const VF p = exp(hn::Sub(load(row + c, left), shift));
      VF kept = p, dp = load(g + c, left);
      if (dropout.p > 0) {
        const VF factors = mask.factors(c);
        kept = hn::Mul(p, factors);
        dp = hn::Mul(dp, factors);
      }
      store(kept, row + c, left);
      store(hn::Mul(p, hn::Sub(dp, mean)), g + c, left);
    }
  }
}

void row_dots(const float* a, int64_t lda, const float* b, int64_t ldb, float* sums, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    VF total = hn::Zero(F());
    for (int64_t c = 0; c < columns; c += lanes()) {
      total = hn::MulAdd(load(a + r * lda + c, columns - c), load(b + r * ldb + c, columns - c), total);
    }
    sums[r] = sum(total);
  }
}

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace
}  // namespace lathe::nn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lathe::nn::kernels {
namespace {

HWY_EXPORT(dropout);
HWY_EXPORT(gelu_forward);
HWY_EXPORT(gelu_tanh_forward);
HWY_EXPORT(multiply);
HWY_EXPORT(residual_layer_norm_forward);
HWY_EXPORT(residual_layer_norm_backward);
HWY_EXPORT(softmax_forward);
HWY_EXPORT(softmax_backward);
HWY_EXPORT(row_dots);
HWY_EXPORT(target_name);

[[maybe_unused]] const bool portable_by_environment = [] {
  const char* value = std::getenv("LATHE_KERNELS");
  const bool portable = value != nullptr && std::strcmp(value, "portable") == 0;
  if (portable) force_portable(true);
  return portable;
}();

}  // namespace

void dropout(const float* x, float* y, int64_t first_index, int64_t n, Dropout dropout) {
  HWY_DYNAMIC_DISPATCH(dropout)(x, y, first_index, n, dropout);
}

void gelu_forward(const float* x, const float* bias, float* y, float* derivative, int64_t rows, int64_t columns) {
  HWY_DYNAMIC_DISPATCH(gelu_forward)(x, bias, y, derivative, rows, columns);
}

void gelu_tanh_forward(const float* x, const float* bias, float* y, float* derivative, int64_t rows, int64_t columns) {
  HWY_DYNAMIC_DISPATCH(gelu_tanh_forward)(x, bias, y, derivative, rows, columns);
}

void multiply(const float* a, const float* b, float* out, int64_t n) { HWY_DYNAMIC_DISPATCH(multiply)(a, b, out, n); }

void residual_layer_norm_forward(float* h, const float* bias, const float* residual, const float* gamma,
                                 const float* beta, float* y, float* rstd, int64_t first_row, int64_t rows,
                                 int64_t columns, float eps, Dropout dropout) {
  HWY_DYNAMIC_DISPATCH(residual_layer_norm_forward)
  (h, bias, residual, gamma, beta, y, rstd, first_row, rows, columns, eps, dropout);
}

void residual_layer_norm_backward(const float* dy, const float* xhat, const float* rstd, const float* gamma,
                                  float* d_residual, float* d_h, int64_t first_row, int64_t rows, int64_t columns,
                                  Dropout dropout) {
  HWY_DYNAMIC_DISPATCH(residual_layer_norm_backward)
  (dy, xhat, rstd, gamma, d_residual, d_h, first_row, rows, columns, dropout);
}

void softmax_forward(float* scores, float* lse, int64_t rows, int64_t columns, int64_t ld, uint64_t first_index,
                     Dropout dropout) {
  HWY_DYNAMIC_DISPATCH(softmax_forward)(scores, lse, rows, columns, ld, first_index, dropout);
}

void softmax_backward(float* scores, float* grad, const float* lse, const float* delta, int64_t rows, int64_t columns,
                      int64_t ld, uint64_t first_index, Dropout dropout) {
  HWY_DYNAMIC_DISPATCH(softmax_backward)(scores, grad, lse, delta, rows, columns, ld, first_index, dropout);
}

void row_dots(const float* a, int64_t lda, const float* b, int64_t ldb, float* sums, int64_t rows, int64_t columns) {
  HWY_DYNAMIC_DISPATCH(row_dots)(a, lda, b, ldb, sums, rows, columns);
}

std::string chosen_target() { return HWY_DYNAMIC_DISPATCH(target_name)(); }

void force_portable(bool portable) {
  hwy::SetSupportedTargetsForTest(portable ? HWY_STATIC_TARGET : 0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace lathe::nn::kernels
#endif  // HWY_ONCE
