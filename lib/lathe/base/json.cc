#include "lathe/base/json.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>
#include <utility>
#include <vector>

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/text.h"

namespace lathe {
namespace {

// The parser's reason without its own coordinates, and without the token that it read last: that may be the whole file.
std::string reason_of(std::string_view text) {
  if (const size_t start = text.find("syntax error"); start != std::string_view::npos) text.remove_prefix(start);
  if (const size_t token = text.find("; last read"); token != std::string_view::npos) text = text.substr(0, token);
  return printable(text.substr(0, 200));
}

// Builds the value while checking what nlohmann's own parser lets pass: duplicate keys and depth.
class StrictBuilder {
 public:
  explicit StrictBuilder(size_t max_depth) : max_depth_(max_depth) {}

  Json result;
  std::string problem;
  size_t position = 0;

  bool null() { return put(nullptr); }
  bool boolean(bool value) { return put(value); }
  bool number_integer(int64_t value) { return put(value); }
  bool number_unsigned(uint64_t value) { return put(value); }
  bool number_float(double value, const std::string&) { return put(value); }
  bool string(std::string& value) { return put(std::move(value)); }
  bool binary(Json::binary_t&) { return fail("unexpected binary value"); }

  bool start_object(size_t) { return open(Json::object()); }
  bool key(std::string& name) {
    if (!keys_.back().insert(name).second) return fail("duplicate key " + quote(name));
    key_ = std::move(name);
    return true;
  }
  bool end_object() { return close(); }
  bool start_array(size_t) { return open(Json::array()); }
  bool end_array() { return close(); }

  bool parse_error(size_t where, const std::string&, const nlohmann::detail::exception& error) {
    position = where;
    problem = "bad JSON: " + reason_of(error.what());
    return false;
  }

 private:
  bool fail(std::string text) {
    problem = std::move(text);
    return false;
  }
  Json* place(Json&& value) {
    if (stack_.empty()) {
      result = std::move(value);
      return &result;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    // Appended without a search: key() has checked that it is new.
    auto& members = parent.get_ref<Json::object_t&>();
    members.push_back({std::move(key_), std::move(value)});
    return &members.back().second;
  }
  template <typename T>
  bool put(T&& value) {
    place(Json(std::forward<T>(value)));
    return true;
  }
  bool open(Json&& value) {
    if (stack_.size() >= max_depth_) return fail("nested more than " + std::to_string(max_depth_) + " deep");
    stack_.push_back(place(std::move(value)));
    keys_.emplace_back();
    return true;
  }
  bool close() {
    stack_.pop_back();
    keys_.pop_back();
    return true;
  }

  size_t max_depth_;
  std::vector<Json*> stack_;
  std::vector<std::unordered_set<std::string>> keys_;
  std::string key_;
};

// Counts how far the parser has read, for the line of a mistake that is not a syntax error.
std::string integer_range(int64_t low, int64_t high) {
  return "an integer from " + std::to_string(low) + " to " + std::to_string(high);
}

struct CountingIterator {
  using iterator_category = std::forward_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at = nullptr;
  const char** reached = nullptr;

  reference operator*() const { return *at; }
  CountingIterator& operator++() {
    *reached = ++at;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator old = *this;
    ++*this;
    return old;
  }
  bool operator==(const CountingIterator& other) const { return at == other.at; }
  bool operator!=(const CountingIterator& other) const { return at != other.at; }
};

}  // namespace

Json parse_json(std::string_view text, const std::string& file, JsonLimits limits, int first_line) {
  const auto line_at = [&](size_t offset) {
    return first_line + static_cast<int>(std::count(text.begin(), text.begin() + std::min(offset, text.size()), '\n'));
  };
  if (text.starts_with("\xEF\xBB\xBF"))
    throw data_error_at(file, first_line, "begins with a byte-order mark", "save it as plain UTF-8");
  if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    throw data_error_at(file, line_at(bad), "not valid UTF-8 at byte " + std::to_string(bad));
  }
  // The parser would take a NUL for the end and never see what follows it.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    throw data_error_at(file, line_at(nul), "bad JSON: NUL at byte " + std::to_string(nul));
  }
  StrictBuilder builder(limits.max_depth);
  const char* reached = text.data();
  const bool ok = Json::sax_parse(CountingIterator{text.data(), &reached},
                                  CountingIterator{text.data() + text.size(), &reached}, &builder);
  if (!ok) {
    const size_t offset = builder.position > 0 ? builder.position - 1 : static_cast<size_t>(reached - text.data());
    throw data_error_at(file, line_at(offset), builder.problem);
  }
  return std::move(builder.result);
}

Json read_json_file(const std::string& path, uint64_t max_bytes, JsonLimits limits) {
  return parse_json(read_file(path, max_bytes), path, limits);
}

std::string describe(const Json& value) {
  if (value.is_object()) return value.empty() ? "{}" : "{...}";
  if (value.is_array()) return value.empty() ? "[]" : "[...]";
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

JsonObject::JsonObject(const Json& value, std::string file, std::string path)
    : value_(&value), file_(std::move(file)), path_(std::move(path)) {
  if (!value.is_object()) throw data_error_in(file_, path_, Diagnostic::expected("a JSON object", describe(value)));
}

const Json* JsonObject::find(const std::string& key) const {
  const auto found = value_->find(key);
  return found == value_->end() || found->is_null() ? nullptr : &*found;
}

void JsonObject::refuse_other_keys(const std::vector<std::string>& known) const {
  for (const auto& [key, value] : value_->items()) {
    if (std::find(known.begin(), known.end(), key) == known.end())
      throw error(printable(key), "unknown key", suggest(key, known));
  }
}

Error JsonObject::error(const std::string& key, const std::string& problem, const std::string& hint) const {
  return data_error_in(file_, path_.empty() ? key : path_ + "." + key, problem, hint);
}

const Json& JsonObject::at(const std::string& key, const std::string& expected) const {
  const Json* value = find(key);
  if (value == nullptr) throw error(key, Diagnostic::expected(expected, "nothing"));
  return *value;
}

int64_t JsonObject::integer(const std::string& key, int64_t low, int64_t high, std::optional<int64_t> fallback) const {
  if (fallback && find(key) == nullptr) return *fallback;
  return integer_of(key, at(key, integer_range(low, high)), low, high);
}

int64_t JsonObject::integer_of(const std::string& key, const Json& value, int64_t low, int64_t high) const {
  const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
                                               : value.is_number_integer();
  if (!fits || value.get<int64_t>() < low || value.get<int64_t>() > high) {
    throw error(key, Diagnostic::expected(integer_range(low, high), describe(value)));
  }
  return value.get<int64_t>();
}

double JsonObject::number(const std::string& key, std::optional<double> fallback) const {
  if (fallback && find(key) == nullptr) return *fallback;
  const Json& value = at(key, "a number");
  if (!value.is_number() || !std::isfinite(value.get<double>()))
    throw error(key, Diagnostic::expected("a number", describe(value)));
  return value.get<double>();
}

bool JsonObject::boolean(const std::string& key, std::optional<bool> fallback) const {
  if (fallback && find(key) == nullptr) return *fallback;
  const Json& value = at(key, "true or false");
  if (!value.is_boolean()) throw error(key, Diagnostic::expected("true or false", describe(value)));
  return value.get<bool>();
}

std::string JsonObject::string(const std::string& key, std::optional<std::string> fallback) const {
  if (fallback && find(key) == nullptr) return *fallback;
  const Json& value = at(key, "a string");
  if (!value.is_string()) throw error(key, Diagnostic::expected("a string", describe(value)));
  return value.get<std::string>();
}

JsonObject JsonObject::object(const std::string& key) const {
  return {at(key, "an object"), file_, path_.empty() ? key : path_ + "." + key};
}

}  // namespace lathe
