#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

/// The byte offset of the first byte that is not valid UTF-8 (surrogates and overlong forms are invalid), or npos.
size_t find_invalid_utf8(std::string_view text);

/// `text` in double quotes, control characters, quotes and backslashes escaped, at most `max_length` bytes of it.
std::string quote(std::string_view text, size_t max_length = 60);

/// `text` fit for a terminal: control characters (newline and tab included) and invalid UTF-8 as \xNN.
std::string printable(std::string_view text);

std::string escape_html(std::string_view text);

/// The longest part of valid UTF-8 from its beginning that has at most `max_bytes` and whole characters.
std::string cut_utf8(std::string_view text, size_t max_bytes);

/// RFC 4648, with padding.
std::string base64(std::string_view bytes);

std::string join(const std::vector<std::string>& parts, std::string_view separator);

/// The candidate nearest to `name` by edit distance, if it is near enough to be a slip; otherwise empty.
std::string nearest(std::string_view name, const std::vector<std::string>& candidates);

/// "did you mean X? known: A, B, ..." or only the known names when none is near.
std::string suggest(std::string_view name, const std::vector<std::string>& candidates);

/// 1536 -> "1.5 KiB".
std::string format_bytes(uint64_t bytes);
/// The other way: a number and B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB; none for anything else, and
/// for what is not in [1 B, 2^53 B].
std::optional<int64_t> parse_bytes(std::string_view text);

}  // namespace lathe
