#include "lathe/base/text.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace lathe {
namespace {

std::string hex_escape(unsigned char byte) {
  std::array<char, 5> text{};
  std::snprintf(text.data(), text.size(), "\\x%02X", byte);
  return text.data();
}

// The bytes of the code point at `text`, or a negative value when they are not valid UTF-8.
ptrdiff_t decode(std::string_view text, int32_t& code_point) {
  return utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<ptrdiff_t>(text.size()),
                          &code_point);
}

bool is_control(int32_t code_point) {
  return code_point < 0x20 || (code_point >= 0x7F && code_point < 0xA0) || code_point == 0x2028 ||
         code_point == 0x2029 || (code_point >= 0x202A && code_point <= 0x202E) ||
         (code_point >= 0x2066 && code_point <= 0x2069);
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
  size_t offset = 0;
  while (offset < text.size()) {
    if (static_cast<unsigned char>(text[offset]) < 0x80) {
      ++offset;
      continue;
    }
    int32_t code_point = 0;
    const ptrdiff_t length = decode(text.substr(offset), code_point);
    if (length <= 0) return offset;
    offset += static_cast<size_t>(length);
  }
  return std::string_view::npos;
}

std::string printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    int32_t code_point = 0;
    const ptrdiff_t length = decode(text, code_point);
    const size_t taken = length > 0 ? static_cast<size_t>(length) : 1;
    if (length > 0 && !is_control(code_point)) {
      out += text.substr(0, taken);
    } else {
      for (const char byte : text.substr(0, taken)) out += hex_escape(static_cast<unsigned char>(byte));
    }
    text.remove_prefix(taken);
  }
  return out;
}

std::string quote(std::string_view text, size_t max_length) {
  const bool cut = text.size() > max_length;
  if (cut) {
    size_t end = max_length;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    text = text.substr(0, end);
  }
  std::string escaped;
  for (const char c : text) {
    if (c == '"' || c == '\\') escaped += '\\';
    escaped += c;
  }
  return "\"" + printable(escaped) + (cut ? "...\"" : "\"");
}

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string cut_utf8(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return std::string(text);
  while (max_bytes > 0 && (static_cast<unsigned char>(text[max_bytes]) & 0xC0) == 0x80) --max_bytes;
  return std::string(text.substr(0, max_bytes));
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    uint32_t group = 0;
    for (size_t i = at; i < at + 3; ++i)
      group = group << 8 | (i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0);
    const size_t digits = std::min<size_t>(4, bytes.size() - at + 1);
    for (size_t i = 0; i < 4; ++i) text += i < digits ? kDigits[group >> (18 - 6 * i) & 63] : '=';
  }
  return text;
}

std::string join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string out;
  for (const std::string& part : parts) {
    if (&part != parts.data()) out += separator;
    out += part;
  }
  return out;
}

constexpr size_t kLongestName = 64;

std::string nearest(std::string_view name, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    // A distance is at least the difference of the lengths. The limit bounds the work on texts that are no names.
    const auto [shorter, longer] = std::minmax({name.size(), candidate.size()});
    if (longer > kLongestName || longer - shorter >= best_distance) continue;
    const size_t distance = edit_distance(name, candidate);
    if (distance < best_distance && distance < candidate.size()) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string suggest(std::string_view name, const std::vector<std::string>& candidates) {
  constexpr size_t kShown = 12;
  std::vector<std::string> shown;
  for (const std::string& candidate : candidates) {
    if (shown.size() == kShown) break;
    shown.push_back(candidate.size() > kLongestName ? cut_utf8(candidate, kLongestName) + "..." : candidate);
  }
  std::string known = "known: " + join(shown, ", ") + (candidates.size() > kShown ? ", ..." : "");
  const std::string near = nearest(name, candidates);
  return near.empty() ? known : "did you mean " + near + "? " + known;
}

std::string format_bytes(uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits.at(unit));
  return text.data();
}

std::optional<int64_t> parse_bytes(std::string_view text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return std::nullopt;
  std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  const bool binary = unit.size() == 3 && unit.ends_with("iB");
  if (!binary && !(unit == "B" || (unit.size() == 2 && unit.ends_with('B')))) return std::nullopt;
  const size_t power = unit == "B" ? 0 : unit == "kB" ? 1 : std::string_view(" KMGT").find(unit.front());
  if (power == std::string_view::npos || (unit != "B" && power == 0)) return std::nullopt;
  const double bytes = number * std::pow(binary ? 1024.0 : 1000.0, static_cast<double>(power));
  if (!(bytes >= 1 && bytes <= 9007199254740992.0)) return std::nullopt;
  return static_cast<int64_t>(bytes);
}

}  // namespace lathe
