#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>

#include "lathe/base/random.h"

namespace lathe::testing {

/// `bytes` with one change, a function of `key`: a bit flipped, a piece removed, doubled or inserted, a digit replaced.
/// Three in four lie in the first 1,200 bytes after `start`.
inline std::string mutated(std::string bytes, uint64_t key, size_t start = 0) {
  auto draw = [&, n = uint64_t{0}](size_t bound) mutable { return random_bits(key, n++) % bound; };
  if (bytes.size() <= start) return bytes;
  const size_t at = draw(4) == 0 ? draw(bytes.size()) : start + draw(std::min<size_t>(bytes.size() - start, 1200));
  const size_t length = std::min<size_t>(1 + draw(12), bytes.size() - at);
  constexpr std::string_view kPieces[] = {"0",
                                          "-1",
                                          "18446744073709551615",
                                          "9223372036854775807",
                                          "4294967296",
                                          "\"",
                                          "{",
                                          "}",
                                          "[",
                                          "]",
                                          ",",
                                          ":",
                                          "null",
                                          "true",
                                          "1e3",
                                          "-0.5",
                                          "\"F64\"",
                                          "\\u0000",
                                          "..",
                                          "/"};
  switch (draw(5)) {
    case 0:
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << draw(8)));
      break;
    case 1:
      bytes.erase(at, length);
      break;
    case 2:
      bytes.insert(at, bytes.substr(at, length));
      break;
    case 3:
      bytes.insert(at, kPieces[draw(std::size(kPieces))]);
      break;
    default:
      if (const size_t digit = bytes.find_first_of("0123456789", at); digit != std::string::npos) {
        bytes[digit] = static_cast<char>('0' + draw(10));
      }
  }
  return bytes;
}

}  // namespace lathe::testing
