#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "lathe/base/error.h"

namespace lathe::arch {

/// A regular expression over module paths, matched by PCRE2 with bounds on time and memory.
/// Throws Error of `kind` at `place`, on construction when it is malformed or longer than 10,000 bytes, and from a
/// match that would take too long.
class Regex {
 public:
  Regex(std::string pattern, Diagnostic place, ErrorKind kind = ErrorKind::Config);

  /// As Python's re.fullmatch and re.match.
  bool matches_whole(const std::string& text) const;
  bool matches_start(const std::string& text) const;

 private:
  struct Compiled;

  bool match(const std::string& text, uint32_t options) const;
  [[noreturn]] void fail(const std::string& expected) const;

  std::string pattern_;
  Diagnostic place_;
  ErrorKind kind_;
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace lathe::arch
