#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "lathe/base/error.h"

namespace lathe::arch {

/// A regular expression over module paths, matched by PCRE2 with bounds on time and memory.
/// Throws Error{Config} at `place`, on construction when it is malformed or longer than 10,000 bytes, and from a match
/// that would take too long. `key` names what holds it, for the message.
class Regex {
 public:
  Regex(const std::string& pattern, const std::string& key, const Diagnostic& place);

  /// As Python's re.fullmatch and re.match.
  bool matches_whole(const std::string& text) const;
  bool matches_start(const std::string& text) const;

 private:
  struct Compiled;

  bool match(const std::string& text, uint32_t options) const;
  [[noreturn]] void fail(const std::string& expected) const;

  Diagnostic place_;
  std::string key_;
  std::string pattern_;
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace lathe::arch
