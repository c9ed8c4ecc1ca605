#include "lathe/quant/codes.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace lathe::quant {
namespace {

// By their bits: the specification of both types.
constexpr std::array<uint32_t, 16> kNF4Bits = {0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0, 0xBE91A24D, 0xBE3D353F,
                                               0xBDBA7871, 0x00000000, 0x3DA2FAFF, 0x3E24CAE3, 0x3E7C04DD, 0x3EAD033A,
                                               0x3EE1A4B8, 0x3F1007AB, 0x3F3913B3, 0x3F800000};
constexpr std::array<uint32_t, 16> kFP4Bits = {0x00000000, 0x3BAAAAAB, 0x3F2AAAAB, 0x3F800000, 0x3EAAAAAB, 0x3F000000,
                                               0x3E2AAAAB, 0x3E800000, 0x00000000, 0xBBAAAAAB, 0xBF2AAAAB, 0xBF800000,
                                               0xBEAAAAAB, 0xBF000000, 0xBE2AAAAB, 0xBE800000};

CodeBook from_bits(const std::array<uint32_t, 16>& bits) {
  CodeBook values{};
  std::transform(bits.begin(), bits.end(), values.begin(), [](uint32_t b) { return std::bit_cast<float>(b); });
  return values;
}

Decisions make_decisions(const CodeBook& book) {
  Decisions result{};
  std::iota(result.codes.begin(), result.codes.end(), uint8_t{0});
  std::stable_sort(result.codes.begin(), result.codes.end(), [&](uint8_t a, uint8_t b) { return book[a] < book[b]; });
  for (size_t i = 0; i < result.thresholds.size(); ++i)
    result.thresholds[i] = (book[result.codes[i]] + book[result.codes[i + 1]]) / 2;
  return result;
}

}  // namespace

std::string_view quant_type_name(QuantType type) { return type == QuantType::NF4 ? "nf4" : "fp4"; }

std::optional<QuantType> parse_quant_type(std::string_view name) {
  for (const QuantType type : {QuantType::NF4, QuantType::FP4}) {
    if (name == quant_type_name(type)) return type;
  }
  return std::nullopt;
}

const CodeBook& code_book(QuantType type) {
  static const std::array<CodeBook, 2> kBooks = {from_bits(kNF4Bits), from_bits(kFP4Bits)};
  return kBooks[static_cast<size_t>(type)];
}

const Decisions& decisions(QuantType type) {
  static const std::array<Decisions, 2> kDecisions = {make_decisions(code_book(QuantType::NF4)),
                                                      make_decisions(code_book(QuantType::FP4))};
  return kDecisions[static_cast<size_t>(type)];
}

}  // namespace lathe::quant
