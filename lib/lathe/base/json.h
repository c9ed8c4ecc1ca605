#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lathe {

/// An order-preserving JSON value: maps keep the order of the file.
using Json = nlohmann::ordered_json;

struct JsonLimits {
  size_t max_depth = 64;
};

/// Parses a whole JSON text strictly: UTF-8, no byte-order mark, no duplicate keys, at most `limits.max_depth` nested.
/// Throws Error{Data} with `file` and the 1-based line of the mistake (`first_line` is the line of the text's first
/// byte).
Json parse_json(std::string_view text, const std::string& file, JsonLimits limits = {}, int first_line = 1);

/// Reads and parses a file of at most `max_bytes`.
Json read_json_file(const std::string& path, uint64_t max_bytes = uint64_t{100} << 20, JsonLimits limits = {});

/// A JSON object of one file with typed, checked access: every mistake is an Error{Data} that names the file and the
/// key.
class JsonObject {
 public:
  /// Throws unless `value` is an object. `path` is the object's own place in the file, empty for the root.
  JsonObject(const Json& value, std::string file, std::string path = "");

  const Json& json() const { return *value_; }
  const std::string& file() const { return file_; }
  /// The value of `key`, or null when it is absent or JSON null.
  const Json* find(const std::string& key) const;

  /// Each throws when the key is absent (unless a fallback is given) or has another type; integers must lie in [low,
  /// high].
  int64_t integer(const std::string& key, int64_t low, int64_t high, std::optional<int64_t> fallback = {}) const;
  /// The same of a member that is already at hand: finding each of n members by name takes n² steps.
  int64_t integer_of(const std::string& key, const Json& value, int64_t low, int64_t high) const;
  double number(const std::string& key, std::optional<double> fallback = {}) const;
  bool boolean(const std::string& key, std::optional<bool> fallback = {}) const;
  std::string string(const std::string& key, std::optional<std::string> fallback = {}) const;
  JsonObject object(const std::string& key) const;

  /// Throws at the first key that is not among `known`.
  void refuse_other_keys(const std::vector<std::string>& known) const;

  /// An Error{Data} about `key` of this object: `FILE: PATH.KEY: PROBLEM (HINT)`.
  class Error error(const std::string& key, const std::string& problem, const std::string& hint = "") const;

 private:
  const Json& at(const std::string& key, const std::string& expected) const;

  const Json* value_;
  std::string file_;
  std::string path_;
};

/// A short rendering of a JSON value for messages: `"sixteen"`, `[...]`, `{...}`, `3.7`.
std::string describe(const Json& value);

}  // namespace lathe
