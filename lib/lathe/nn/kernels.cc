#include "lathe/nn/kernels.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <type_traits>

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

// Masked accesses do not touch the lanes that are off. Highway vouches for that on fewer targets than have it: AVX2's
// are safe for 32-bit lanes.
#define LATHE_MASKED_ACCESS (!HWY_MEM_OPS_MIGHT_FAULT || HWY_TARGET == HWY_AVX2)

// A full vector of a sweep.
struct Whole {
  HWY_INLINE VF load(const float* p, float /*fill*/ = 0) const { return hn::LoadU(F(), p); }
  HWY_INLINE void store(VF v, float* p) const { hn::StoreU(v, F(), p); }
  HWY_INLINE VF keep(VF v) const { return v; }
};

// The last vector of a sweep: its first `count` lanes exist.
struct Rest {
  size_t count;

#if LATHE_MASKED_ACCESS
  HWY_INLINE VF load(const float* p) const { return hn::MaskedLoad(hn::FirstN(F(), count), F(), p); }
  HWY_INLINE VF load(const float* p, float fill) const {
    return hn::IfThenElse(hn::FirstN(F(), count), load(p), hn::Set(F(), fill));
  }
  HWY_INLINE void store(VF v, float* p) const { hn::BlendedStore(v, hn::FirstN(F(), count), F(), p); }
#else
  HWY_INLINE VF load(const float* p, float fill = 0) const {
    HWY_ALIGN float buffer[hn::MaxLanes(F())];
    hn::Store(hn::Set(F(), fill), F(), buffer);
    for (size_t i = 0; i < count; ++i) buffer[i] = p[i];
    return hn::Load(F(), buffer);
  }
  HWY_INLINE void store(VF v, float* p) const {
    HWY_ALIGN float buffer[hn::MaxLanes(F())];
    hn::Store(v, F(), buffer);
    for (size_t i = 0; i < count; ++i) p[i] = buffer[i];
  }
#endif
  // Zero in the lanes that do not exist.
  HWY_INLINE VF keep(VF v) const { return hn::IfThenElseZero(hn::FirstN(F(), count), v); }
};

// Calls step(first element, Whole or Rest) for n elements, a vector at a time.
template <typename Step>
HWY_INLINE void sweep(int64_t n, const Step& step) {
  int64_t i = 0;
  for (; i + lanes() <= n; i += lanes()) step(i, Whole());
  if (i < n) step(i, Rest{static_cast<size_t>(n - i)});
}

HWY_INLINE float sum(VF v) { return hn::GetLane(hn::SumOfLanes(F(), v)); }

// The factors of dropout, 0 or 1 / (1 - p), for consecutive places. The hash is two rounds of multiply-xorshift
// (Wellons 2018, "lowbias32") of key + place * 2^32 / golden ratio, with the other half of the key added between the
// rounds. Without that factor places 768 or 4096 apart correlate by 0.5 %. It counts in 32 bits; the higher bits of a
// place go into the key.
class Mask {
 public:
  Mask(Dropout dropout, uint64_t first_place)
      : dropout_(dropout),
        first_place_(first_place),
        until_border_((int64_t{1} << 32) - static_cast<int64_t>(first_place & 0xFFFFFFFF)) {
    const uint64_t high = first_place >> 32;
    const uint64_t key = mix_bits(dropout.key ^ (high == 0 ? 0 : mix_bits(high)));
    key_ = hn::Set(U(), static_cast<uint32_t>(key >> 32));
    const auto dropped = static_cast<int64_t>(static_cast<double>(dropout.p) * 4294967296.0);
    threshold_ = hn::Set(I(), static_cast<int32_t>(dropped + INT32_MIN));
    scale_ = hn::Set(F(), 1 / (1 - dropout.p));
    const auto places = hn::Iota(U(), static_cast<uint32_t>(first_place));
    start_ = hn::Add(hn::Mul(places, hn::Set(U(), kStep)), hn::Set(U(), static_cast<uint32_t>(key)));
  }
  HWY_INLINE VF factors(int64_t offset) const {
    if (HWY_UNLIKELY(offset + lanes() > until_border_)) {
      return factors_across_border(dropout_, first_place_ + static_cast<uint64_t>(offset));
    }
    return hash(offset);
  }

 private:
  static constexpr uint32_t kStep = 0x9E3779B9u;

  HWY_INLINE VF hash(int64_t offset) const {
    auto x = hn::Add(start_, hn::Set(U(), static_cast<uint32_t>(offset) * kStep));
    x = hn::Mul(hn::Xor(x, hn::ShiftRight<16>(x)), hn::Set(U(), 0x7FEB352Du));
    x = hn::Add(hn::Xor(x, hn::ShiftRight<15>(x)), key_);
    x = hn::Mul(x, hn::Set(U(), 0x846CA68Bu));
    x = hn::Xor(x, hn::ShiftRight<16>(x));
    return hn::IfThenZeroElse(hn::RebindMask(F(), hn::Lt(hn::BitCast(I(), x), threshold_)), scale_);
  }
  // Static, so that the object's address goes nowhere and its members stay in registers.
  HWY_NOINLINE static VF factors_across_border(Dropout dropout, uint64_t place) {
    const Mask here(dropout, place);
    if (here.until_border_ >= lanes()) return here.hash(0);
    const Mask next(dropout, place + static_cast<uint64_t>(here.until_border_));
    return hn::IfThenElse(hn::FirstN(F(), static_cast<size_t>(here.until_border_)), here.hash(0),
                          next.hash(-here.until_border_));
  }

  Dropout dropout_;
  uint64_t first_place_;
  int64_t until_border_;
  hn::Vec<U> start_, key_;
  hn::Vec<I> threshold_;
  VF scale_;
};

// What stands for Mask where nothing is dropped.
struct NoMask {
  NoMask(Dropout /*dropout*/, uint64_t /*first_place*/) {}
};

HWY_INLINE VF masked(VF v, const Mask& mask, int64_t offset) { return hn::Mul(v, mask.factors(offset)); }
HWY_INLINE VF masked(VF v, const NoMask& /*mask*/, int64_t /*offset*/) { return v; }

// exp within 1.2 ulp for x <= 88, and 0 where the result is below the normal numbers; NaN stays NaN. The polynomial is
// the minimax one for |x| <= ln 2 / 2 (relative error 3e-9).
HWY_INLINE VF exp(VF x) {
  const F d;
  // Adding 1.5 * 2^23 rounds to an integer n, which stands in the low bits; 127 more is the exponent field of 2^n.
  const VF shifter = hn::Set(d, 12582912.0f + 127.0f);
  const VF shifted = hn::MulAdd(hn::Max(x, hn::Set(d, -88.0f)), hn::Set(d, 1.44269504088896341f), shifter);
  const VF n = hn::Sub(shifted, shifter);
  VF r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  VF y = hn::MulAdd(r, hn::Set(d, 1.3814466849e-3f), hn::Set(d, 8.3687804183e-3f));
  y = hn::MulAdd(r, y, hn::Set(d, 4.1668394215e-2f));
  y = hn::MulAdd(r, y, hn::Set(d, 1.6666520108e-1f));
  y = hn::MulAdd(r, y, hn::Set(d, 4.9999993412e-1f));
  y = hn::MulAdd(r, y, hn::Set(d, 1.0f));
  y = hn::MulAdd(r, y, hn::Set(d, 1.0f));
  y = hn::Mul(y, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(I(), shifted))));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.33f)), y);
}

void dropout(const float* x, float* y, int64_t first_index, int64_t n, Dropout dropout) {
  if (dropout.p == 0) {
    if (x != y) std::memcpy(y, x, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  const Mask mask(dropout, static_cast<uint64_t>(first_index));
  sweep(n, [&](int64_t i, auto part) HWY_ATTR { part.store(masked(part.load(x + i), mask, i), y + i); });
}

// Abramowitz and Stegun 7.1.26: 1 - erf(z) within 1.5e-7 for z >= 0, sharing exp(-z²) with the density.
struct ErfForm {
  HWY_INLINE static void apply(VF v, VF& y, VF& derivative) {
    const F d;
    const VF one = hn::Set(d, 1.0f);
    const VF e = exp(hn::Mul(hn::Mul(v, v), hn::Set(d, -0.5f)));
    const VF t = hn::Div(one, hn::MulAdd(hn::Abs(v), hn::Set(d, 0.3275911f * 0.70710678118654752f), one));
    VF q = hn::MulAdd(t, hn::Set(d, 0.5f * 1.061405429f), hn::Set(d, 0.5f * -1.453152027f));
    q = hn::MulAdd(t, q, hn::Set(d, 0.5f * 1.421413741f));
    q = hn::MulAdd(t, q, hn::Set(d, 0.5f * -0.284496736f));
    q = hn::MulAdd(t, q, hn::Set(d, 0.5f * 0.254829592f));
    q = hn::Mul(hn::Mul(q, t), e);
    const VF cdf = hn::IfThenElse(hn::Lt(v, hn::Zero(d)), q, hn::Sub(one, q));
    y = hn::Mul(v, cdf);
    derivative = hn::MulAdd(hn::Mul(v, hn::Set(d, 0.39894228040143268f)), e, cdf);
  }
};

// (1 + tanh u) / 2 = cdf = 1 / (1 + exp(-2 u)); 1 - cdf = cdf exp(-2 u), without cancellation.
struct TanhForm {
  HWY_INLINE static void apply(VF v, VF& y, VF& derivative) {
    const F d;
    const VF one = hn::Set(d, 1.0f), cubic = hn::Set(d, 0.044715f), root = hn::Set(d, 1.59576912160573071f),
             most = hn::Set(d, 87.0f);
    const VF square = hn::Mul(v, v);
    const VF exponent = hn::Neg(hn::Mul(hn::Mul(root, v), hn::MulAdd(cubic, square, one)));
    // By comparison and not by Min, which may lose a NaN.
    const VF e = exp(hn::IfThenElse(hn::Gt(exponent, most), most, exponent));
    const VF cdf = hn::Div(one, hn::Add(e, one));
    const VF slope = hn::Mul(root, hn::MulAdd(hn::Mul(hn::Set(d, 3.0f), cubic), square, one));
    y = hn::Mul(v, cdf);
    derivative = hn::MulAdd(hn::Mul(y, hn::Mul(e, cdf)), slope, cdf);
  }
};

template <typename Form>
HWY_INLINE void gelu(const float* x, const float* bias, float* y, float* derivative, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = r * columns;
    sweep(columns, [&](int64_t c, auto part) HWY_ATTR {
      VF v = part.load(x + row + c);
      if (bias != nullptr) v = hn::Add(v, part.load(bias + c));
      VF result, slope;
      Form::apply(v, result, slope);
      part.store(result, y + row + c);
      part.store(slope, derivative + row + c);
    });
  }
}

void gelu_forward(const float* x, const float* bias, float* y, float* derivative, int64_t rows, int64_t columns) {
  gelu<ErfForm>(x, bias, y, derivative, rows, columns);
}

void gelu_tanh_forward(const float* x, const float* bias, float* y, float* derivative, int64_t rows, int64_t columns) {
  gelu<TanhForm>(x, bias, y, derivative, rows, columns);
}

void multiply(const float* a, const float* b, float* out, int64_t n) {
  sweep(n, [&](int64_t i, auto part) HWY_ATTR { part.store(hn::Mul(part.load(a + i), part.load(b + i)), out + i); });
}

// Normalises the row in place and returns 1 / √(var + eps); `total` is the row's sum. The second pass also finds by how
// much the rounded mean is off (Chan, Golub, LeVeque 1983, the corrected two-pass algorithm).
HWY_INLINE float normalise_row(float* row, float total, const float* gamma, const float* beta, float* y,
                               int64_t columns, float eps) {
  const F d;
  const auto count = static_cast<float>(columns);
  const VF mean = hn::Set(d, total / count);
  VF squares = hn::Zero(d), deviations = hn::Zero(d);
  sweep(columns, [&](int64_t c, auto part) HWY_ATTR {
    const VF centred = part.keep(hn::Sub(part.load(row + c), mean));
    squares = hn::MulAdd(centred, centred, squares);
    deviations = hn::Add(deviations, centred);
  });
  const float offset = sum(deviations) / count;
  const float rstd = 1 / std::sqrt(sum(squares) / count - offset * offset + eps);
  const VF factor = hn::Set(d, rstd), shift = hn::Set(d, offset * rstd);
  sweep(columns, [&](int64_t c, auto part) HWY_ATTR {
    const VF xhat = hn::MulSub(hn::Sub(part.load(row + c), mean), factor, shift);
    part.store(xhat, row + c);
    part.store(hn::MulAdd(xhat, part.load(gamma + c), part.load(beta + c)), y + c);
  });
  return rstd;
}

template <typename AnyMask>
HWY_INLINE void norm_forward(float* h, const float* bias, const float* residual, const float* gamma, const float* beta,
                             float* y, float* rstd, int64_t first_row, int64_t rows, int64_t columns, float eps,
                             Dropout dropout) {
  for (int64_t r = 0; r < rows; ++r) {
    const AnyMask mask(dropout, static_cast<uint64_t>((first_row + r) * columns));
    float* row = h + r * columns;
    const float* added = residual + r * columns;
    VF total = hn::Zero(F());
    sweep(columns, [&](int64_t c, auto part) HWY_ATTR {
      VF s = part.load(row + c);
      if (bias != nullptr) s = hn::Add(s, part.load(bias + c));
      s = hn::Add(masked(s, mask, c), part.load(added + c));
      part.store(s, row + c);
      total = hn::Add(total, s);
    });
    rstd[r] = normalise_row(row, sum(total), gamma, beta, y + r * columns, columns, eps);
  }
}

void residual_layer_norm_forward(float* h, const float* bias, const float* residual, const float* gamma,
                                 const float* beta, float* y, float* rstd, int64_t first_row, int64_t rows,
                                 int64_t columns, float eps, Dropout dropout) {
  if (dropout.p > 0) {
    norm_forward<Mask>(h, bias, residual, gamma, beta, y, rstd, first_row, rows, columns, eps, dropout);
  } else {
    norm_forward<NoMask>(h, bias, residual, gamma, beta, y, rstd, first_row, rows, columns, eps, dropout);
  }
}

void scale_shift(const float* x, const float* gamma, const float* beta, float* y, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = r * columns;
    sweep(columns, [&](int64_t c, auto part) HWY_ATTR {
      part.store(hn::MulAdd(part.load(x + row + c), part.load(gamma + c), part.load(beta + c)), y + row + c);
    });
  }
}

template <typename AnyMask>
HWY_INLINE void norm_backward(const float* dy, const float* xhat, const float* rstd, const float* gamma,
                              float* d_residual, float* d_h, int64_t first_row, int64_t rows, int64_t columns,
                              Dropout dropout) {
  const F d;
  for (int64_t r = 0; r < rows; ++r) {
    const AnyMask mask(dropout, static_cast<uint64_t>((first_row + r) * columns));
    const int64_t row = r * columns;
    VF sums = hn::Zero(d), products = hn::Zero(d);
    sweep(columns, [&](int64_t c, auto part) HWY_ATTR {
      const VF g = hn::Mul(part.load(dy + row + c), part.load(gamma + c));
      sums = hn::Add(sums, g);
      products = hn::MulAdd(g, part.load(xhat + row + c), products);
    });
    const VF mean = hn::Set(d, sum(sums) / static_cast<float>(columns));
    const VF slope = hn::Set(d, sum(products) / static_cast<float>(columns));
    const VF factor = hn::Set(d, rstd[r]);
    sweep(columns, [&](int64_t c, auto part) HWY_ATTR {
      const VF g = hn::Mul(part.load(dy + row + c), part.load(gamma + c));
      const VF ds = hn::Mul(factor, hn::NegMulAdd(part.load(xhat + row + c), slope, hn::Sub(g, mean)));
      part.store(ds, d_residual + row + c);
      if constexpr (std::is_same_v<AnyMask, Mask>) part.store(masked(ds, mask, c), d_h + row + c);
    });
  }
}

void residual_layer_norm_backward(const float* dy, const float* xhat, const float* rstd, const float* gamma,
                                  float* d_residual, float* d_h, int64_t first_row, int64_t rows, int64_t columns,
                                  Dropout dropout) {
  if (dropout.p > 0) {
    norm_backward<Mask>(dy, xhat, rstd, gamma, d_residual, d_h, first_row, rows, columns, dropout);
  } else {
    norm_backward<NoMask>(dy, xhat, rstd, gamma, d_residual, d_h, first_row, rows, columns, dropout);
  }
}

template <typename AnyMask>
HWY_INLINE void softmax_rows(float* scores, float* lse, int64_t rows, int64_t columns, int64_t ld, uint64_t first_index,
                             Dropout dropout) {
  const F d;
  for (int64_t r = 0; r < rows; ++r) {
    const AnyMask mask(dropout, first_index + static_cast<uint64_t>(r * columns));
    float* row = scores + r * ld;
    VF most = hn::Set(d, -INFINITY);
    sweep(columns, [&](int64_t c, auto part) HWY_ATTR { most = hn::Max(most, part.load(row + c, -INFINITY)); });
    const VF peak = hn::MaxOfLanes(d, most);
    VF total = hn::Zero(d);
    sweep(columns, [&](int64_t c, auto part) HWY_ATTR {
      const VF e = part.keep(exp(hn::Sub(part.load(row + c), peak)));
      part.store(e, row + c);
      total = hn::Add(total, e);
    });
    const float normaliser = sum(total);
    lse[r] = hn::GetLane(peak) + std::log(normaliser);
    const VF inverse = hn::Set(d, 1 / normaliser);
    sweep(columns, [&](int64_t c, auto part)
                       HWY_ATTR { part.store(masked(hn::Mul(part.load(row + c), inverse), mask, c), row + c); });
  }
}

void softmax_forward(float* scores, float* lse, int64_t rows, int64_t columns, int64_t ld, uint64_t first_index,
                     Dropout dropout) {
  if (dropout.p > 0) {
    softmax_rows<Mask>(scores, lse, rows, columns, ld, first_index, dropout);
  } else {
    softmax_rows<NoMask>(scores, lse, rows, columns, ld, first_index, dropout);
  }
}

template <typename AnyMask>
HWY_INLINE void softmax_rows_backward(float* scores, float* grad, const float* lse, const float* delta, int64_t rows,
                                      int64_t columns, int64_t ld, uint64_t first_index, Dropout dropout) {
  const F d;
  for (int64_t r = 0; r < rows; ++r) {
    const AnyMask mask(dropout, first_index + static_cast<uint64_t>(r * columns));
    float *row = scores + r * ld, *g = grad + r * ld;
    const VF shift = hn::Set(d, lse[r]), mean = hn::Set(d, delta[r]);
    sweep(columns, [&](int64_t c, auto part) HWY_ATTR {
      const VF p = exp(hn::Sub(part.load(row + c), shift));
      VF kept = p, dp = part.load(g + c);
      if constexpr (std::is_same_v<AnyMask, Mask>) {
        const VF factors = mask.factors(c);
        kept = hn::Mul(p, factors);
        dp = hn::Mul(dp, factors);
      }
      part.store(kept, row + c);
      part.store(hn::Mul(p, hn::Sub(dp, mean)), g + c);
    });
  }
}

void softmax_backward(float* scores, float* grad, const float* lse, const float* delta, int64_t rows, int64_t columns,
                      int64_t ld, uint64_t first_index, Dropout dropout) {
  if (dropout.p > 0) {
    softmax_rows_backward<Mask>(scores, grad, lse, delta, rows, columns, ld, first_index, dropout);
  } else {
    softmax_rows_backward<NoMask>(scores, grad, lse, delta, rows, columns, ld, first_index, dropout);
  }
}

void row_dots(const float* a, int64_t lda, const float* b, int64_t ldb, float* sums, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    const float *left = a + r * lda, *right = b + r * ldb;
    VF total = hn::Zero(F());
    sweep(columns,
          [&](int64_t c, auto part) HWY_ATTR { total = hn::MulAdd(part.load(left + c), part.load(right + c), total); });
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
HWY_EXPORT(scale_shift);
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
  HWY_DYNAMIC_DISPATCH(gelu_tanh_forward)
  (x, bias, y, derivative, rows, columns);
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

void scale_shift(const float* x, const float* gamma, const float* beta, float* y, int64_t rows, int64_t columns) {
  HWY_DYNAMIC_DISPATCH(scale_shift)(x, gamma, beta, y, rows, columns);
}

void softmax_forward(float* scores, float* lse, int64_t rows, int64_t columns, int64_t ld, uint64_t first_index,
                     Dropout dropout) {
  HWY_DYNAMIC_DISPATCH(softmax_forward)
  (scores, lse, rows, columns, ld, first_index, dropout);
}

void softmax_backward(float* scores, float* grad, const float* lse, const float* delta, int64_t rows, int64_t columns,
                      int64_t ld, uint64_t first_index, Dropout dropout) {
  HWY_DYNAMIC_DISPATCH(softmax_backward)
  (scores, grad, lse, delta, rows, columns, ld, first_index, dropout);
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
