#include "lathe/nn/narrow_kernels.h"

#include <algorithm>
#include <array>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lathe/nn/narrow_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per instruction set
//
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lathe::nn::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

struct Product {
  const float* a;
  int64_t a_stride;
  const float* b;
  float* c;
  int64_t c_stride, columns, inner;
  float alpha, beta;
};

// `Rows` rows of c from `row` on, whose sums stay in registers; c is as wide as `Vectors` vectors. Few rows, since
// those of a whose length is a multiple of 4 KiB meet in one set of the cache; so that enough sums are under way all
// the same, every second product goes to a sum of its own.
template <int64_t Rows, int64_t Vectors, typename D>
HWY_INLINE void tile(D d, const Product& p, int64_t row) {
  constexpr int64_t kChains = Vectors == 1 ? 2 : 1, kWidth = Vectors * hn::MaxLanes(D());
  constexpr int64_t kLanes = hn::MaxLanes(D());
  hn::Vec<D> sums[Rows][Vectors][kChains];
  for (auto& vectors : sums)
    for (auto& chains : vectors)
      for (auto& sum : chains) sum = hn::Zero(d);
  const float* a = p.a + row * p.a_stride;
  const auto add = [&](int64_t k, int64_t chain) HWY_ATTR {
    hn::Vec<D> right[Vectors];
    for (int64_t v = 0; v < Vectors; ++v) right[v] = hn::LoadU(d, p.b + k * kWidth + v * kLanes);
    for (int64_t r = 0; r < Rows; ++r) {
      const auto left = hn::Set(d, a[r * p.a_stride + k]);
      for (int64_t v = 0; v < Vectors; ++v) sums[r][v][chain] = hn::MulAdd(left, right[v], sums[r][v][chain]);
    }
  };
  int64_t k = 0;
  for (; k + kChains <= p.inner; k += kChains)
    for (int64_t chain = 0; chain < kChains; ++chain) add(k + chain, chain);
  if (k < p.inner) add(k, 0);
  for (int64_t r = 0; r < Rows; ++r) {
    HWY_ALIGN std::array<float, kWidth> values;
    for (int64_t v = 0; v < Vectors; ++v) {
      auto sum = sums[r][v][0];
      for (int64_t chain = 1; chain < kChains; ++chain) sum = hn::Add(sum, sums[r][v][chain]);
      hn::StoreU(hn::Mul(sum, hn::Set(d, p.alpha)), d, values.data() + v * kLanes);
    }
    float* c = p.c + (row + r) * p.c_stride;
    for (int64_t j = 0; j < p.columns; ++j) c[j] = values[static_cast<size_t>(j)] + (p.beta == 0 ? 0 : p.beta * c[j]);
  }
}

template <int64_t Rows, int64_t Vectors, typename D>
HWY_INLINE void sweep(D d, const Product& p, int64_t row, int64_t rows) {
  for (; row + Rows <= rows; row += Rows) tile<Rows, Vectors>(d, p, row);
  if constexpr (Rows > 1) sweep<Rows / 2, Vectors>(d, p, row, rows);
}

void narrow_gemm(const float* a, int64_t a_stride, const float* b, float* c, int64_t c_stride, int64_t rows,
                 int64_t columns, int64_t inner, float alpha, float beta) {
  const Product product{a, a_stride, b, c, c_stride, columns, inner, alpha, beta};
  const hn::CappedTag<float, 8> eight;
  const hn::CappedTag<float, kMostNarrow> sixteen;
  constexpr int64_t kRows = 6;
  if (columns <= 8) {
    sweep<kRows, 8 / hn::MaxLanes(eight)>(eight, product, 0, rows);
  } else {
    sweep<kRows, kMostNarrow / hn::MaxLanes(sixteen)>(sixteen, product, 0, rows);
  }
}

}  // namespace
}  // namespace lathe::nn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lathe::nn::kernels {
namespace {

HWY_EXPORT(narrow_gemm);

}  // namespace

void narrow_gemm(const float* a, int64_t a_stride, const float* b, float* c, int64_t c_stride, int64_t rows,
                 int64_t columns, int64_t inner, float alpha, float beta) {
  HWY_DYNAMIC_DISPATCH(narrow_gemm)(a, a_stride, b, c, c_stride, rows, columns, inner, alpha, beta);
}

}  // namespace lathe::nn::kernels
#endif  // HWY_ONCE
