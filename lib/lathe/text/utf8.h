#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lathe::text {

/// Removes the first code point from `text`, which is valid UTF-8 and not empty, and returns it.
inline int32_t take_code_point(std::string_view& text) {
  const auto byte = [&](size_t i) { return static_cast<int32_t>(static_cast<unsigned char>(text[i])); };
  const int32_t first = byte(0);
  int32_t c = first;
  size_t length = 1;
  if (first >= 0xF0) {
    c = ((first & 7) << 18) | ((byte(1) & 63) << 12) | ((byte(2) & 63) << 6) | (byte(3) & 63);
    length = 4;
  } else if (first >= 0xE0) {
    c = ((first & 15) << 12) | ((byte(1) & 63) << 6) | (byte(2) & 63);
    length = 3;
  } else if (first >= 0xC0) {
    c = ((first & 31) << 6) | (byte(1) & 63);
    length = 2;
  }
  text.remove_prefix(length);
  return c;
}

inline void append_utf8(int32_t c, std::string& out) {
  const auto put = [&out](int32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | (c >> 6));
    put(0x80 | (c & 63));
  } else if (c < 0x10000) {
    put(0xE0 | (c >> 12));
    put(0x80 | ((c >> 6) & 63));
    put(0x80 | (c & 63));
  } else {
    put(0xF0 | (c >> 18));
    put(0x80 | ((c >> 12) & 63));
    put(0x80 | ((c >> 6) & 63));
    put(0x80 | (c & 63));
  }
}

/// Unicode's White_Space property.
inline bool is_white_space(int32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace lathe::text
