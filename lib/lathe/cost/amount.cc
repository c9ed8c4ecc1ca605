#include "lathe/cost/amount.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>

namespace lathe::cost {
namespace {

template <size_t N>
std::string with_prefix(Amount amount, Amount base, const std::array<const char*, N>& prefixes, const char* format) {
  size_t power = 0;
  for (; std::abs(amount) >= base && power + 1 < N; ++power) amount /= base;
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), power == 0 ? "%.4g%s" : format, amount, prefixes.at(power));
  return text.data();
}

}  // namespace

std::string bytes_text(Amount bytes) {
  constexpr Amount kLargest = 0x1p90;  // 1024 YiB
  if (std::abs(bytes) >= kLargest) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%.3g B", bytes);
    return text.data();
  }
  constexpr std::array<const char*, 9> kUnits = {" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB", " ZiB", " YiB"};
  return with_prefix(bytes, 1024, kUnits, "%.1f%s");
}

std::string count_text(Amount count) {
  constexpr std::array<const char*, 6> kPrefixes = {"", " k", " M", " G", " T", " P"};
  constexpr Amount kLargest = 1e18;
  return std::abs(count) >= kLargest ? with_prefix<1>(count, 10, {""}, "")
                                     : with_prefix(count, 1000, kPrefixes, "%.4g%s");
}

Json whole(Amount amount) {
  constexpr Amount kExact = 0x1p53;
  return std::abs(amount) <= kExact ? Json(static_cast<int64_t>(amount)) : Json(amount);
}

}  // namespace lathe::cost
