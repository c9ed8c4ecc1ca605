#include "lathe/quant/blockwise.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "lathe/quant/float16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lathe/quant/blockwise.cc"
#include <hwy/foreach_target.h>  // includes this file once per instruction set
//
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lathe::quant::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using I = hn::RebindToSigned<F>;
constexpr int64_t kChunk = 64;  // a block's values are padded to it: a multiple of every vector

// x [n] as float32 in `out`, zeros up to a multiple of kChunk.
void widen(Float dtype, const void* x, int64_t begin, int64_t n, float* out) {
  const auto* half = static_cast<const uint16_t*>(x) + begin;
  if (dtype == Float::F32) {
    std::memcpy(out, static_cast<const float*>(x) + begin, static_cast<size_t>(n) * sizeof(float));
  } else if (dtype == Float::BF16) {
    for (int64_t i = 0; i < n; ++i) out[i] = from_bfloat16(half[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = from_float16(half[i]);
  }
  std::fill(out + n, out + (n + kChunk - 1) / kChunk * kChunk, 0.0f);
}

// The largest magnitude by its bits, in whose order infinities and NaN come
// last.
uint32_t largest_bits(const float* x, int64_t n) {
  const F d;
  const I di;
  auto largest = hn::Zero(di);
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::Lanes(d)))
    largest = hn::Max(largest, hn::BitCast(di, hn::Abs(hn::Load(d, x + i))));
  return static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(di, largest)));
}

// packed [kChunk / 2] = the codes of these ranks, two a byte.
void pack(const std::array<uint8_t, 16>& codes, const uint8_t* ranks, uint8_t* packed) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < kChunk; i += 2)
    packed[i / 2] = static_cast<uint8_t>(codes[ranks[i]] << 4 | codes[ranks[i + 1]]);
#else
  const hn::FixedTag<uint8_t, 16> bytes;
  const hn::FixedTag<uint16_t, 8> pairs;
  const hn::FixedTag<int16_t, 8> signed_pairs;
  const hn::FixedTag<uint8_t, 8> half;
  const auto table = hn::LoadU(bytes, codes.data());
  for (int64_t i = 0; i < kChunk; i += 16) {
    const auto pair = hn::BitCast(pairs, hn::TableLookupBytes(table, hn::LoadU(bytes, ranks + i)));
    const auto joined = hn::And(hn::Or(hn::ShiftLeft<4>(pair), hn::ShiftRight<8>(pair)), hn::Set(pairs, 0xFF));
    hn::StoreU(hn::DemoteTo(half, hn::BitCast(signed_pairs, joined)), half, packed + i / 2);
  }
#endif
}

// packed [n / 2] = the codes of x · reciprocal, n a multiple of kChunk.
void encode(const Decisions& decisions, float reciprocal, const float* x, int64_t n, uint8_t* packed) {
  const F d;
  const I di;
  const hn::Rebind<uint8_t, F> d8;
  const auto factor = hn::Set(d, reciprocal);
  for (int64_t first = 0; first < n; first += kChunk) {
    HWY_ALIGN std::array<uint8_t, kChunk> ranks;
    for (int64_t i = 0; i < kChunk; i += static_cast<int64_t>(hn::Lanes(d))) {
      const auto scaled = hn::Mul(hn::Load(d, x + first + i), factor);
      auto rank = hn::Zero(di);
      for (const float threshold : decisions.thresholds)
        rank = hn::Sub(rank, hn::VecFromMask(di, hn::RebindMask(di, hn::Gt(scaled, hn::Set(d, threshold)))));
      hn::StoreU(hn::DemoteTo(d8, rank), d8, ranks.data() + i);
    }
    pack(decisions.codes, ranks.data(), packed + first / 2);
  }
}

int64_t quantize(QuantType type, Float dtype, const void* x, int64_t num_elements, int64_t blocksize,
                 int64_t first_block, int64_t last_block, uint8_t* packed, float* absmax) {
  const Decisions& rules = decisions(type);
  HWY_ALIGN std::array<float, kMaxBlocksize> values;
  std::array<uint8_t, kMaxBlocksize / 2> codes;
  for (int64_t block = first_block; block < last_block; ++block) {
    const int64_t begin = block * blocksize, n = std::min(blocksize, num_elements - begin);
    const int64_t padded = (n + kChunk - 1) / kChunk * kChunk;
    widen(dtype, x, begin, n, values.data());
    const uint32_t bits = largest_bits(values.data(), padded);
    if (bits >= 0x7F800000) {
      const auto bad = [](float v) { return (std::bit_cast<uint32_t>(v) & 0x7F800000) == 0x7F800000; };
      return begin + (std::find_if(values.begin(), values.begin() + n, bad) - values.begin());
    }
    absmax[block] = std::bit_cast<float>(bits);
    encode(rules, 1 / std::max(absmax[block], 1e-38f), values.data(), padded, codes.data());
    std::memcpy(packed + begin / 2, codes.data(), static_cast<size_t>(packed_bytes(n)));
  }
  return -1;
}

// What a decoded value is stored as: one rounding of code · scale. On AVX-512
// the same for sixteen at a time; elsewhere for four, two bytes in the upper half of each lane.
using F4 = hn::FixedTag<float, HWY_TARGET == HWY_SCALAR ? 1 : 4>;
using U4 = hn::RebindToUnsigned<F4>;

// To bfloat16, to nearest even.
HWY_INLINE hn::Vec<U4> bfloat16_lanes(hn::Vec<F4> v) {
  const U4 d;
  const auto bits = hn::BitCast(d, v), odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1));
  const auto sum = hn::Add(hn::Add(bits, hn::Set(d, 0x7FFF)), odd);
  return hn::IfThenElse(hn::RebindMask(d, hn::IsNaN(v)), hn::Set(d, 0x7FC00000), sum);
}

struct AsFloat {
  using Element = float;
  static Element round(float v) { return v; }
  static HWY_INLINE hn::Vec<U4> round_lanes(hn::Vec<F4> v) { return hn::BitCast(U4(), v); }
#if HWY_TARGET <= HWY_AVX3
  static __m512i round(__m512 v) { return _mm512_castps_si512(v); }
#endif
};

struct AsBFloat16 {
  using Element = uint16_t;
  static Element round(float v) { return to_bfloat16(v); }
  static HWY_INLINE hn::Vec<U4> round_lanes(hn::Vec<F4> v) { return bfloat16_lanes(v); }
#if HWY_TARGET <= HWY_AVX3
  // To nearest even, in the upper half of each lane; the instruction for it
  // would flush subnormals.
  static __m512i round_in_place(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(sum, nan, _mm512_set1_epi32(0x7FC00000));
  }
  static __m256i round(__m512 v) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_in_place(v), 16)); }
#endif
};

struct AsFloat16 {
  using Element = uint16_t;
  static Element round(float v) { return to_float16(v); }
  static HWY_INLINE hn::Vec<U4> round_lanes(hn::Vec<F4> v) {
    std::array<float, 4> lanes;
    hn::StoreU(v, F4(), lanes.data());
    std::array<uint32_t, 4> rounded{};
    for (size_t i = 0; i < hn::Lanes(F4()); ++i) rounded[i] = uint32_t{to_float16(lanes[i])} << 16;
    return hn::LoadU(U4(), rounded.data());
  }
#if HWY_TARGET <= HWY_AVX3
  static __m256i round(__m512 v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#endif
};

// Rounded to bfloat16, kept in float32.
struct AsRounded {
  using Element = float;
  static Element round(float v) { return from_bfloat16(to_bfloat16(v)); }
  static HWY_INLINE hn::Vec<U4> round_lanes(hn::Vec<F4> v) {
    return hn::And(bfloat16_lanes(v), hn::Set(U4(), 0xFFFF0000));
  }
#if HWY_TARGET <= HWY_AVX3
  static __m512i round(__m512 v) {
    return _mm512_and_si512(AsBFloat16::round_in_place(v), _mm512_set1_epi32(static_cast<int>(0xFFFF0000)));
  }
#endif
};

// The sixteen values of one block: decodes 32 codes from 16 bytes at a time,
// and the rest one by one.
template <typename Form>
class Table {
 public:
  using Element = typename Form::Element;

  Table(const float* book, float scale) : book_(book), scale_(scale) {
#if HWY_TARGET <= HWY_AVX3
    const auto values = Form::round(_mm512_mul_ps(_mm512_loadu_ps(book), _mm512_set1_ps(scale)));
    if constexpr (sizeof(Element) == 4) {
      table_ = values;
    } else {
      table_ = _mm512_inserti64x4(_mm512_castsi256_si512(values), values, 1);
    }
#elif HWY_TARGET != HWY_SCALAR
    // Sixteen values of four bytes become four planes: bytes together in each vector, then as a matrix of words.
    HWY_ALIGN static constexpr std::array<uint8_t, 16> kTogether = {0, 4, 8,  12, 1, 5, 9,  13,
                                                                    2, 6, 10, 14, 3, 7, 11, 15};
    const auto together = hn::Load(Bytes(), kTogether.data());
    const auto four = [&](size_t i) HWY_ATTR {
      const auto values = Form::round_lanes(hn::Mul(hn::LoadU(F4(), book + 4 * i), hn::Set(F4(), scale)));
      return hn::BitCast(U4(), hn::TableLookupBytes(hn::BitCast(Bytes(), values), together));
    };
    const auto a = four(0), b = four(1), c = four(2), d = four(3);
    const auto high01 = hn::InterleaveUpper(U4(), a, b), high23 = hn::InterleaveUpper(U4(), c, d);
    const Wide wide;
    const auto join = [&](auto first, auto second, bool upper) HWY_ATTR {
      const auto x = hn::BitCast(wide, first), y = hn::BitCast(wide, second);
      return hn::BitCast(Bytes(), upper ? hn::InterleaveUpper(wide, x, y) : hn::InterleaveLower(wide, x, y));
    };
    constexpr size_t kUpper = sizeof(Element) - 2;  // where the planes of the upper two bytes stand
    planes_[kUpper] = join(high01, high23, false);
    planes_[kUpper + 1] = join(high01, high23, true);
    if constexpr (sizeof(Element) == 4) {
      const auto low01 = hn::InterleaveLower(U4(), a, b), low23 = hn::InterleaveLower(U4(), c, d);
      planes_[0] = join(low01, low23, false);
      planes_[1] = join(low01, low23, true);
    }
#endif
  }

  HWY_INLINE Element value(int code) const { return Form::round(book_[code] * scale_); }

#if HWY_TARGET <= HWY_AVX3
  // Elements 0, 2, ... and 1, 3, ...
  HWY_INLINE std::array<__m512, 2> lookup32(const uint8_t* codes) const {
    const __m512i low = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    // Of an index only four bits count.
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi32(_mm512_srli_epi32(low, 4), table_)),
            _mm512_castsi512_ps(_mm512_permutexvar_epi32(low, table_))};
  }

  HWY_INLINE void decode32(const uint8_t* codes, Element* out) const {
    if constexpr (sizeof(Element) == 4) {
      const auto halves = lookup32(codes);
      const __m512i even = _mm512_castps_si512(halves[0]), odd = _mm512_castps_si512(halves[1]);
      const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      const __m512i second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
      _mm512_storeu_si512(out, _mm512_permutex2var_epi32(even, first, odd));
      _mm512_storeu_si512(out + 16, _mm512_permutex2var_epi32(even, second, odd));
    } else {
      const __m512i low = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
      // The table stands twice, so the fifth bit of an index does not matter
      // and the others need no mask.
      const __m512i index = _mm512_or_si512(_mm512_srli_epi32(low, 4), _mm512_slli_epi32(low, 16));
      _mm512_storeu_si512(out, _mm512_permutexvar_epi16(index, table_));
    }
  }

 private:
  __m512i table_;
#elif HWY_TARGET == HWY_SCALAR
  HWY_INLINE void decode32(const uint8_t* codes, Element* out) const {
    for (int i = 0; i < 16; ++i) {
      out[2 * i] = value(codes[i] >> 4);
      out[2 * i + 1] = value(codes[i] & 0x0F);
    }
  }

 private:
#else
  HWY_INLINE void decode32(const uint8_t* codes, Element* out) const {
    const auto packed = hn::LoadU(Bytes(), codes);
    const auto mask = hn::Set(Bytes(), 0x0F);
    const auto high = hn::And(hn::BitCast(Bytes(), hn::ShiftRight<4>(hn::BitCast(Words(), packed))), mask);
    const auto low = hn::And(packed, mask);
    decode16(hn::InterleaveLower(Bytes(), high, low), out);
    decode16(hn::InterleaveUpper(Bytes(), high, low), out + 16);
  }

#if HWY_TARGET == HWY_AVX2
  // Elements 0, 2, ..., 14; 16, ..., 30; 1, 3, ..., 15; 17, ..., 31.
  HWY_INLINE std::array<__m256, 4> lookup32(const uint8_t* codes) const {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    // So that interleaving within 128 bits puts the elements in order.
    const __m256i order = _mm256_setr_epi8(0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11,  //
                                           4, 5, 6, 7, 12, 13, 14, 15, 4, 5, 6, 7, 12, 13, 14, 15);
    const __m256i shifted = _mm256_srlv_epi32(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(packed), order),
                                              _mm256_setr_epi32(4, 4, 0, 0, 4, 4, 0, 0));
    const __m256i index = _mm256_and_si256(shifted, _mm256_set1_epi8(0x0F));
    const auto plane = [&](int byte) HWY_ATTR {
      return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(planes_[byte].raw), index);
    };
    const __m256i b0 = plane(0), b1 = plane(1), b2 = plane(2), b3 = plane(3);
    const __m256i low01 = _mm256_unpacklo_epi8(b0, b1), low23 = _mm256_unpacklo_epi8(b2, b3);
    const __m256i high01 = _mm256_unpackhi_epi8(b0, b1), high23 = _mm256_unpackhi_epi8(b2, b3);
    return {_mm256_castsi256_ps(_mm256_unpacklo_epi16(low01, low23)),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(low01, low23)),
            _mm256_castsi256_ps(_mm256_unpacklo_epi16(high01, high23)),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(high01, high23))};
  }
#endif

 private:
  using Bytes = hn::FixedTag<uint8_t, 16>;
  using Wide = hn::FixedTag<uint64_t, 2>;
  using Words = hn::FixedTag<uint16_t, 8>;

  template <typename V>
  HWY_INLINE void decode16(V index, Element* out) const {
    auto* words = reinterpret_cast<uint16_t*>(out);
    const auto b0 = hn::TableLookupBytes(planes_[0], index), b1 = hn::TableLookupBytes(planes_[1], index);
    const auto low0 = hn::BitCast(Words(), hn::InterleaveLower(Bytes(), b0, b1));
    const auto low1 = hn::BitCast(Words(), hn::InterleaveUpper(Bytes(), b0, b1));
    if constexpr (sizeof(Element) == 2) {
      hn::StoreU(low0, Words(), words);
      hn::StoreU(low1, Words(), words + 8);
    } else {
      const auto b2 = hn::TableLookupBytes(planes_[2], index), b3 = hn::TableLookupBytes(planes_[3], index);
      const auto high0 = hn::BitCast(Words(), hn::InterleaveLower(Bytes(), b2, b3));
      const auto high1 = hn::BitCast(Words(), hn::InterleaveUpper(Bytes(), b2, b3));
      hn::StoreU(hn::InterleaveLower(Words(), low0, high0), Words(), words);
      hn::StoreU(hn::InterleaveUpper(Words(), low0, high0), Words(), words + 8);
      hn::StoreU(hn::InterleaveLower(Words(), low1, high1), Words(), words + 16);
      hn::StoreU(hn::InterleaveUpper(Words(), low1, high1), Words(), words + 24);
    }
  }

  hn::Vec<Bytes> planes_[sizeof(Element)];
#endif
  const float* book_;
  float scale_;
};

// out = elements [begin, end) of one block's table.
template <typename Form>
HWY_INLINE void decode(const Table<Form>& table, const uint8_t* codes, int64_t begin, int64_t end,
                       typename Form::Element* out) {
  if (begin % 2 == 1) *out++ = table.value(codes[begin++ / 2] & 0x0F);
  const uint8_t* next = codes + begin / 2;
  for (; begin + 32 <= end; begin += 32, next += 16, out += 32) table.decode32(next, out);
  for (; begin + 2 <= end; begin += 2, ++next, out += 2) {
    out[0] = table.value(*next >> 4);
    out[1] = table.value(*next & 0x0F);
  }
  if (begin < end) *out = table.value(*next >> 4);
}

// visit(table, begin, end) for each block's share of the elements [begin, end).
template <typename Form, typename Visit>
HWY_INLINE void for_each_block(const Packed& packed, int64_t begin, int64_t end, const Visit& visit) {
  constexpr int64_t kScales = 128;
  std::array<float, kScales> scales;
  for (int64_t at = begin; at < end;) {
    const int64_t first = at / packed.blocksize;
    const int64_t count = std::min(kScales, num_blocks(end, packed.blocksize) - first);
    read_scales(packed.scales, first, count, scales.data());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t until = std::min(end, (first + i + 1) * packed.blocksize);
      visit(Table<Form>(packed.book, scales[static_cast<size_t>(i)]), at, until);
      at = until;
    }
  }
}

template <typename Form>
HWY_INLINE void decode_blocks(const Packed& packed, int64_t begin, int64_t end, typename Form::Element* out) {
  for_each_block<Form>(packed, begin, end, [&](const Table<Form>& table, int64_t at, int64_t until) {
    decode(table, packed.codes, at, until, out + (at - begin));
  });
}

#if HWY_TARGET <= HWY_AVX2
template <typename Form, int64_t Rows>
void dots(const Packed& packed, int64_t begin, int64_t end, const float* x, float* out, int64_t out_stride) {
  const F d;
  constexpr size_t kLanes = HWY_TARGET <= HWY_AVX3 ? 16 : 8, kVectors = 32 / kLanes, kSums = Rows == 1 ? 4 : 2;
  const int64_t columns = end - begin;
  hn::Vec<F> sums[Rows][kSums];
  for (auto& row : sums)
    for (auto& sum : row) sum = hn::Zero(d);
  const auto add = [&](const Table<Form>& table, int64_t at, size_t place) HWY_ATTR {
    const auto weights = table.lookup32(packed.codes + at / 2);
    for (int64_t m = 0; m < Rows; ++m) {
      for (size_t v = 0; v < kVectors; ++v) {
        auto& sum = sums[m][(place + v) % kSums];
        sum = hn::MulAdd(hn::Vec<F>{weights[v]}, hn::LoadU(d, x + m * columns + at - begin + v * kLanes), sum);
      }
    }
  };
  for_each_block<Form>(packed, begin, end, [&](const Table<Form>& table, int64_t at, int64_t until) HWY_ATTR {
    for (; at + 64 <= until; at += 64) {
      add(table, at, 0);
      add(table, at + 32, kVectors);
    }
    if (at < until) add(table, at, 0);
  });
  for (int64_t m = 0; m < Rows; ++m) {
    auto sum = sums[m][0];
    for (size_t i = 1; i < kSums; ++i) sum = hn::Add(sum, sums[m][i]);
    out[m * out_stride] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

template <typename Form>
void all_dots(const Packed& packed, int64_t begin, int64_t end, const float* x, int64_t num_x, float* out,
              int64_t out_stride) {
  const int64_t columns = end - begin;
  int64_t m = 0;
  if constexpr (HWY_TARGET <= HWY_AVX3) {
    for (; m + 8 <= num_x; m += 8) dots<Form, 8>(packed, begin, end, x + m * columns, out + m * out_stride, out_stride);
  }
  for (; m + 4 <= num_x; m += 4) dots<Form, 4>(packed, begin, end, x + m * columns, out + m * out_stride, out_stride);
  for (; m + 2 <= num_x; m += 2) dots<Form, 2>(packed, begin, end, x + m * columns, out + m * out_stride, out_stride);
  if (m < num_x) dots<Form, 1>(packed, begin, end, x + m * columns, out + m * out_stride, out_stride);
}
#endif

bool dots_in_registers(const Packed& packed, int64_t begin, int64_t end, bool rounded, const float* x, int64_t num_x,
                       float* out, int64_t out_stride) {
#if HWY_TARGET <= HWY_AVX2
  rounded ? all_dots<AsRounded>(packed, begin, end, x, num_x, out, out_stride)
          : all_dots<AsFloat>(packed, begin, end, x, num_x, out, out_stride);
  return true;
#else
  (void)packed, (void)begin, (void)end, (void)rounded, (void)x, (void)num_x, (void)out, (void)out_stride;
  return false;
#endif
}

void dequantize(const Packed& packed, int64_t begin, int64_t end, Float dtype, void* out) {
  if (dtype == Float::F32) {
    decode_blocks<AsFloat>(packed, begin, end, static_cast<float*>(out));
  } else if (dtype == Float::BF16) {
    decode_blocks<AsBFloat16>(packed, begin, end, static_cast<uint16_t*>(out));
  } else {
    decode_blocks<AsFloat16>(packed, begin, end, static_cast<uint16_t*>(out));
  }
}

void dequantize_rounded(const Packed& packed, int64_t begin, int64_t end, float* out) {
  decode_blocks<AsRounded>(packed, begin, end, out);
}

}  // namespace
}  // namespace lathe::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lathe::quant {
namespace {

HWY_EXPORT(quantize);
HWY_EXPORT(dequantize);
HWY_EXPORT(dequantize_rounded);
HWY_EXPORT(dots_in_registers);

}  // namespace

int64_t quantize(QuantType type, Float dtype, const void* x, int64_t num_elements, int64_t blocksize,
                 int64_t first_block, int64_t last_block, uint8_t* packed, float* absmax) {
  return HWY_DYNAMIC_DISPATCH(quantize)(type, dtype, x, num_elements, blocksize, first_block, last_block, packed,
                                        absmax);
}

void dequantize(const Packed& packed, int64_t begin, int64_t end, Float dtype, void* out) {
  HWY_DYNAMIC_DISPATCH(dequantize)(packed, begin, end, dtype, out);
}

void dequantize_rounded(const Packed& packed, int64_t begin, int64_t end, float* out) {
  HWY_DYNAMIC_DISPATCH(dequantize_rounded)(packed, begin, end, out);
}

bool dots_in_registers(const Packed& packed, int64_t begin, int64_t end, bool rounded, const float* x, int64_t num_x,
                       float* out, int64_t out_stride) {
  return HWY_DYNAMIC_DISPATCH(dots_in_registers)(packed, begin, end, rounded, x, num_x, out, out_stride);
}

}  // namespace lathe::quant
#endif  // HWY_ONCE
