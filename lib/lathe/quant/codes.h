#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace lathe::quant {

/// The four-bit types of bitsandbytes.
/// Source  NF4: Dettmers et al. 2023, "QLoRA" (arXiv:2305.14314), with the table that bitsandbytes ships (not the
///         paper's formula). FP4: bitsandbytes' sign, two exponent bits, one of mantissa.
enum class QuantType { NF4, FP4 };

/// "nf4", "fp4".
std::string_view quant_type_name(QuantType type);
std::optional<QuantType> parse_quant_type(std::string_view name);

using CodeBook = std::array<float, 16>;
/// The value of each code, at most 1 in magnitude.
const CodeBook& code_book(QuantType type);

/// What the quantiser decides by: a value x in [-1, 1] has rank r = the number of thresholds t with x > t (a tie takes
/// the lower), and the code codes[r]. Thresholds are the midpoints of neighbouring values, rounded to float32.
struct Decisions {
  std::array<float, 15> thresholds;
  std::array<uint8_t, 16> codes;
};
const Decisions& decisions(QuantType type);

/// Elements that share one scale: 32, 64, ..., 4096.
constexpr int64_t kMinBlocksize = 32, kMaxBlocksize = 4096;
constexpr bool is_blocksize(int64_t n) { return n >= kMinBlocksize && n <= kMaxBlocksize && (n & (n - 1)) == 0; }

constexpr int64_t num_blocks(int64_t num_elements, int64_t blocksize) {
  return (num_elements + blocksize - 1) / blocksize;
}
/// Two codes a byte, the first in the high half; an odd count leaves the last low half to the code of 0.
constexpr int64_t packed_bytes(int64_t num_elements) { return (num_elements + 1) / 2; }

}  // namespace lathe::quant
