#include "lathe/nn/moe_kernels.h"

#include <type_traits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lathe/nn/moe_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per instruction set
//
#include <hwy/highway.h>
//
#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace lathe::nn::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using One = hn::CappedTag<float, 1>;

// Calls step(tag, first element) for n elements: vectors, then single elements.
template <typename Step>
HWY_INLINE void sweep(int64_t n, const Step& step) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(F()));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) step(F(), i);
  for (; i < n; ++i) step(One(), i);
}

// 1 / (1 + exp(-v)); NaN stays NaN.
template <typename D>
HWY_INLINE hn::Vec<D> sigmoid(D d, hn::Vec<D> v) {
  const auto one = hn::Set(d, 1.0f), most = hn::Set(d, 87.0f);
  const auto exponent = hn::Neg(v);
  const auto capped = hn::IfThenElse(hn::Gt(exponent, most), most, exponent);
  return hn::Div(one, hn::Add(one, hn::Exp(d, capped)));
}

void swiglu_forward(const float* h, const float* scale, float* y, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    const float factor = scale == nullptr ? 1 : scale[r];
    const float *g = h + 2 * r * columns, *u = g + columns;
    float* out = y + r * columns;
    sweep(columns, [&](auto d, int64_t c) HWY_ATTR {
      const auto gate = hn::LoadU(d, g + c), up = hn::Mul(hn::LoadU(d, u + c), hn::Set(d, factor));
      hn::StoreU(hn::Mul(hn::Mul(gate, sigmoid(d, gate)), up), d, out + c);
    });
  }
}

void swiglu_backward(const float* h, const float* scale, const float* dy, float* dh, float* y, float* dscale,
                     int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    const float factor = scale == nullptr ? 1 : scale[r];
    const float *g = h + 2 * r * columns, *u = g + columns, *grad = dy + r * columns;
    float *dg = dh + 2 * r * columns, *du = dg + columns;
    float* again = y == nullptr ? nullptr : y + r * columns;
    auto sum = hn::Zero(F());
    float rest = 0;
    sweep(columns, [&](auto d, int64_t c) HWY_ATTR {
      const auto gate = hn::LoadU(d, g + c), up = hn::LoadU(d, u + c), one = hn::Set(d, 1.0f), s = hn::Set(d, factor);
      const auto dout = hn::LoadU(d, grad + c), sig = sigmoid(d, gate);
      const auto silu = hn::Mul(gate, sig), product = hn::Mul(silu, up), scaled = hn::Mul(s, dout);
      const auto slope = hn::Mul(sig, hn::MulAdd(gate, hn::Sub(one, sig), one));
      hn::StoreU(hn::Mul(hn::Mul(scaled, up), slope), d, dg + c);
      hn::StoreU(hn::Mul(scaled, silu), d, du + c);
      if (again != nullptr) hn::StoreU(hn::Mul(s, product), d, again + c);
      if constexpr (std::is_same_v<decltype(d), F>) {
        sum = hn::MulAdd(dout, product, sum);
      } else {
        rest += hn::GetLane(hn::Mul(dout, product));
      }
    });
    if (dscale != nullptr) dscale[r] = hn::GetLane(hn::SumOfLanes(F(), sum)) + rest;
  }
}

void add_rows(const float* rows, const int64_t* index, float* out, int64_t num_rows, int64_t columns) {
  for (int64_t r = 0; r < num_rows; ++r) {
    const float* from = rows + r * columns;
    float* to = out + index[r] * columns;
    sweep(columns, [&](auto d, int64_t c)
                       HWY_ATTR { hn::StoreU(hn::Add(hn::LoadU(d, to + c), hn::LoadU(d, from + c)), d, to + c); });
  }
}

}  // namespace
}  // namespace lathe::nn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lathe::nn::kernels {

HWY_EXPORT(swiglu_forward);
HWY_EXPORT(swiglu_backward);
HWY_EXPORT(add_rows);

void swiglu_forward(const float* h, const float* scale, float* y, int64_t rows, int64_t columns) {
  HWY_DYNAMIC_DISPATCH(swiglu_forward)(h, scale, y, rows, columns);
}

void swiglu_backward(const float* h, const float* scale, const float* dy, float* dh, float* y, float* dscale,
                     int64_t rows, int64_t columns) {
  HWY_DYNAMIC_DISPATCH(swiglu_backward)(h, scale, dy, dh, y, dscale, rows, columns);
}

void add_rows(const float* rows, const int64_t* index, float* out, int64_t num_rows, int64_t columns) {
  HWY_DYNAMIC_DISPATCH(add_rows)(rows, index, out, num_rows, columns);
}

}  // namespace lathe::nn::kernels
#endif  // HWY_ONCE
