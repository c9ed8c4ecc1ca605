#include "lathe/text/bert.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>

#include "lathe/text/bert_unicode.h"
#include "lathe/text/utf8.h"

namespace lathe::text {
namespace {

bool is_chinese(int32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

bool is_ascii_space(int32_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

int combining_class(int32_t c) { return c < 0x300 ? 0 : utf8proc_get_property(c)->combining_class; }

// Canonical decomposition with canonical ordering. U+11938 decomposes only since Unicode 13, which the peer's tables
// predate.
std::vector<int32_t> decompose(const std::vector<int32_t>& text) {
  std::vector<int32_t> out;
  out.reserve(text.size());
  for (const int32_t c : text) {
    if (c < 0xC0 || c == 0x11938) {
      out.push_back(c);
      continue;
    }
    std::array<utf8proc_int32_t, 32> parts{};
    int last_boundclass = 0;
    const auto count = utf8proc_decompose_char(c, parts.data(), static_cast<utf8proc_ssize_t>(parts.size()),
                                               UTF8PROC_DECOMPOSE, &last_boundclass);
    out.insert(out.end(), parts.begin(), parts.begin() + std::max<utf8proc_ssize_t>(count, 0));
  }
  for (auto from = out.begin(); from != out.end();) {
    if (combining_class(*from) == 0) {
      ++from;
      continue;
    }
    auto to = std::find_if(from, out.end(), [](int32_t c) { return combining_class(c) == 0; });
    std::stable_sort(from, to, [](int32_t a, int32_t b) { return combining_class(a) < combining_class(b); });
    from = to;
  }
  return out;
}

}  // namespace

BertNormalizer::BertNormalizer(const JsonObject& block)
    : clean_text_(block.boolean("clean_text", true)),
      handle_chinese_chars_(block.boolean("handle_chinese_chars", true)),
      strip_accents_(block.boolean("strip_accents", block.boolean("lowercase", true))),
      lowercase_(block.boolean("lowercase", true)) {}

void BertNormalizer::append(int32_t c, std::string& out) const {
  if (strip_accents_ && c >= 0x300 && bert_strips(c)) return;
  if (!lowercase_) return append_utf8(c, out);
  if (c == 0x130) {  // the one lower case of two code points
    append_utf8('i', out);
    append_utf8(0x307, out);
    return;
  }
  append_utf8(c < 0x80 ? (c >= 'A' && c <= 'Z' ? c + 32 : c) : bert_newer_lower_case(utf8proc_tolower(c)), out);
}

std::string BertNormalizer::normalize(std::string_view text) const {
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  std::vector<int32_t>
      pending;  // code points from the last ASCII character on: decomposition and ordering never cross one
  const auto flush = [&] {
    if (pending.empty()) return;
    for (const int32_t c : strip_accents_ ? decompose(pending) : pending) append(c, out);
    pending.clear();
  };
  while (!text.empty()) {
    int32_t c = take_code_point(text);
    if (clean_text_) {
      if (c == '\t' || c == '\n' || c == '\r') {
        c = ' ';
      } else if (c < 0x20 || (c >= 0x7F && bert_removes(c))) {
        continue;
      } else if (is_white_space(c)) {
        c = ' ';
      }
    }
    if (c < 0x80) {
      flush();
      append(c, out);
    } else if (handle_chinese_chars_ && is_chinese(c)) {
      flush();
      out += ' ';
      pending.push_back(c);
      flush();
      out += ' ';
    } else {
      pending.push_back(c);
    }
  }
  flush();
  return out;
}

void BertPreTokenizer::split(std::string_view text, std::vector<std::string_view>& words) const {
  const char* start = text.data();
  const auto finish_word = [&](const char* end) {
    if (end > start) words.emplace_back(start, static_cast<size_t>(end - start));
  };
  while (!text.empty()) {
    const char* at = text.data();
    const int32_t c = take_code_point(text);
    const bool space = c < 0x80 ? is_ascii_space(c) : is_white_space(c);
    if (!space && !bert_isolates(c)) continue;
    finish_word(at);
    if (!space) words.emplace_back(at, static_cast<size_t>(text.data() - at));
    start = text.data();
  }
  finish_word(text.data());
}

}  // namespace lathe::text
