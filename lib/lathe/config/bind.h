#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lathe/base/error.h"
#include "lathe/base/text.h"
#include "lathe/config/yaml.h"

/// Binds a YAML tree to structs. A struct names its fields once, in order, in
///     template <typename Visitor> void visit(Visitor& v) { v.field("rank", rank, {"rows of A", Need::Required,
///     at_least(1)}); ... }
/// and from that one list come reading with strict checks, the resolved document and the printed schema.
namespace lathe::config {

enum class Need { Optional, Required };

/// Bounds of a number; NaN: none.
struct Range {
  double low = std::numeric_limits<double>::quiet_NaN();
  double high = std::numeric_limits<double>::quiet_NaN();
  bool low_excluded = false;
  bool high_excluded = false;

  bool contains(double value) const;
  /// " >= 1", " in [0, 1)", "" for none.
  std::string to_string() const;
};

Range at_least(double low);
Range above(double low);
/// [low, high)
Range within(double low, double high);
/// [low, high]
Range between(double low, double high);
/// (low, high]
Range above_up_to(double low, double high);

/// What a field is, besides its name and type.
struct Field {
  const char* doc = "";
  Need need = Need::Optional;
  Range range = {};
  bool from_current_directory = false;  ///< a relative path starts there, not at the document
};

/// Where a key stood in the document, for checks that come after binding.
struct Place {
  std::string file;
  int line = 0;
  int column = 0;
};

/// What reading needs and collects.
struct ReadContext {
  std::vector<Diagnostic> mistakes;
  std::map<std::string, Place> places;  ///< by dotted key, of every key that the document has

  void complain(const YamlNode& node, const std::string& key, const std::string& expected);
};

/// A file or directory: as it will be written again (absolute, ${env:NAME} kept) and as it will be opened.
struct Path {
  std::string text;
  std::string resolved;
  bool operator==(const Path&) const = default;
};

/// Resolves ${cache} and ${env:NAME} and makes the path absolute: relative to `base`, or to the current directory for
/// overrides. hf:org/name stays. Returns false after noting the mistake.
bool resolve_path(const YamlNode& node, const std::string& key, const std::string& base, Path& path,
                  ReadContext& context);

/// The user's cache: LATHE_CACHE, or XDG_CACHE_HOME or ~/.cache with /lathe.
std::string cache_directory();

/// Words for the values of an enumeration: specialise with `static constexpr std::array<std::pair<Enum, const char*>,
/// N> kWords`.
template <typename Enum>
struct Words;

// --- values ---

/// Reading, writing and naming a type of value. Specialise for a type of your own.
template <typename T, typename = void>
struct Codec;

bool parse_integer(const std::string& text, int64_t& value);
bool parse_number(const std::string& text, double& value);
std::string write_number(double value);
/// Plain where YAML cannot misread it, in double quotes otherwise.
std::string write_string(const std::string& text);
inline bool is_plain(const YamlNode& node) { return node.kind == YamlNode::Kind::Scalar && !node.quoted; }
inline bool is_none(const YamlNode& node) { return is_plain(node) && (node.text == "none" || node.text == "null"); }

template <>
struct Codec<int64_t> {
  static std::string name() { return "an integer"; }
  static bool read(const YamlNode& node, int64_t& value) { return is_plain(node) && parse_integer(node.text, value); }
  static std::string write(int64_t value) { return std::to_string(value); }
};

template <>
struct Codec<double> {
  static std::string name() { return "a number"; }
  static bool read(const YamlNode& node, double& value) { return is_plain(node) && parse_number(node.text, value); }
  static std::string write(double value) { return write_number(value); }
};

template <>
struct Codec<bool> {
  static std::string name() { return "true or false"; }
  static bool read(const YamlNode& node, bool& value) {
    value = node.text == "true";
    return is_plain(node) && (value || node.text == "false");
  }
  static std::string write(bool value) { return value ? "true" : "false"; }
};

template <>
struct Codec<std::string> {
  static std::string name() { return "a string"; }
  static bool read(const YamlNode& node, std::string& value) {
    value = node.text;
    return node.kind == YamlNode::Kind::Scalar && (node.quoted || !node.text.empty());
  }
  static std::string write(const std::string& value) { return write_string(value); }
};

template <typename T>
struct Codec<T, std::void_t<decltype(Words<T>::kWords)>> {
  static std::string name() {
    std::string text = "one of ";
    for (const auto& [value, word] : Words<T>::kWords) text += (text.size() > 7 ? ", " : "") + std::string(word);
    return text;
  }
  static bool read(const YamlNode& node, T& value) {
    for (const auto& [known, word] : Words<T>::kWords) {
      if (node.kind != YamlNode::Kind::Scalar || node.text != word) continue;
      value = known;
      return true;
    }
    return false;
  }
  static std::string write(T value) {
    for (const auto& [known, word] : Words<T>::kWords) {
      if (known == value) return word;
    }
    return "";
  }
};

template <typename T>
struct Codec<std::vector<T>> {
  static std::string name() { return "a list, each " + Codec<T>::name(); }
  static bool read(const YamlNode& node, std::vector<T>& values) {
    if (node.kind != YamlNode::Kind::Sequence) return false;
    values.clear();
    for (const YamlNode& item : node.items) {
      T value{};
      if (!Codec<T>::read(item, value)) return false;
      values.push_back(std::move(value));
    }
    return true;
  }
  static std::string write(const std::vector<T>& values) {
    std::string text;
    for (const T& value : values) text += (text.empty() ? "" : ", ") + Codec<T>::write(value);
    return "[" + text + "]";
  }
};

/// A mapping of free keys, in the document's order.
template <typename T>
struct Codec<std::vector<std::pair<std::string, T>>> {
  static std::string name() { return "a mapping of names to " + Codec<T>::name(); }
  static bool read(const YamlNode& node, std::vector<std::pair<std::string, T>>& values) {
    if (!node.is_mapping()) return false;
    values.clear();
    for (const YamlNode::Member& member : node.members) {
      T value{};
      if (!Codec<T>::read(member.value, value)) return false;
      values.emplace_back(member.key, std::move(value));
    }
    return true;
  }
  static std::string write(const std::vector<std::pair<std::string, T>>& values) {
    std::string text;
    for (const auto& [key, value] : values)
      text += (text.empty() ? "" : ", ") + write_string(key) + ": " + Codec<T>::write(value);
    return "{" + text + "}";
  }
};

template <typename T>
struct Codec<std::optional<T>> {
  static std::string name() { return Codec<T>::name(); }
  static bool read(const YamlNode& node, std::optional<T>& value) {
    if (is_none(node)) {
      value.reset();
      return true;
    }
    return Codec<T>::read(node, value.emplace());
  }
  static std::string write(const std::optional<T>& value) { return value ? Codec<T>::write(*value) : "none"; }
};

// --- visitors ---

template <typename T, typename Visitor>
concept Visitable = requires(T& value, Visitor& visitor) {
  value.visit(visitor);
};

inline double as_number(int64_t value) { return static_cast<double>(value); }
inline double as_number(double value) { return value; }
template <typename T>
double as_number(const T&) {
  return std::numeric_limits<double>::quiet_NaN();
}
template <typename T>
double as_number(const std::optional<T>& value) {
  return value ? as_number(*value) : std::numeric_limits<double>::quiet_NaN();
}

/// Reads a mapping into a struct; every mistake goes to the context.
class Reader {
 public:
  Reader(const YamlNode& mapping, std::string prefix, std::string base, ReadContext& context)
      : mapping_(mapping), prefix_(std::move(prefix)), base_(std::move(base)), context_(context) {}

  template <typename T>
  void field(const char* name, T& value, const Field& info) {
    known_.emplace_back(name);
    const std::string key = prefix_ + name;
    const YamlNode* node = mapping_.find(name);
    if (node == nullptr) {
      if (info.need == Need::Required) missing(key);
      return;
    }
    context_.places[key] = {node->file, node->line, node->column};
    read(*node, key, value, info);
  }

  /// Complains about the keys that no field has named.
  void finish();

 private:
  void missing(const std::string& key);
  void read(const YamlNode& node, const std::string& key, Path& value, const Field& info) {
    resolve_path(node, key, info.from_current_directory ? "" : base_, value, context_);
  }
  void read(const YamlNode& node, const std::string& key, std::vector<Path>& value, const Field& info);
  void read(const YamlNode& node, const std::string& key, std::optional<Path>& value, const Field& info) {
    if (is_none(node)) return value.reset();
    read(node, key, value.emplace(), info);
  }
  template <typename T>
  requires Visitable<T, Reader>
  void read(const YamlNode& node, const std::string& key, T& value, const Field&) {
    if (!node.is_mapping()) return context_.complain(node, key, "a mapping");
    Reader inner(node, key + ".", base_, context_);
    value.visit(inner);
    inner.finish();
  }
  template <typename T>
  requires Visitable<T, Reader>
  void read(const YamlNode& node, const std::string& key, std::optional<T>& value, const Field& info) {
    if (is_none(node)) return value.reset();
    read(node, key, value.emplace(), info);
  }
  template <typename T>
  requires Visitable<T, Reader>
  void read(const YamlNode& node, const std::string& key, std::vector<T>& values, const Field& info) {
    if (node.kind != YamlNode::Kind::Sequence) return context_.complain(node, key, "a list of mappings");
    values.clear();
    for (size_t i = 0; i < node.items.size(); ++i)
      read(node.items[i], key + "[" + std::to_string(i) + "]", values.emplace_back(), info);
  }
  // Values in a list or a free mapping: a mistake is told at the value.
  template <typename T>
  requires(!Visitable<T, Reader>) void read(const YamlNode& node, const std::string& key, std::vector<T>& values,
                                            const Field&) {
    if (node.kind != YamlNode::Kind::Sequence) return context_.complain(node, key, Codec<std::vector<T>>::name());
    values.clear();
    for (size_t i = 0; i < node.items.size(); ++i)
      read(node.items[i], key + "[" + std::to_string(i) + "]", values.emplace_back(), Field{});
  }
  template <typename T>
  void read(const YamlNode& node, const std::string& key, std::vector<std::pair<std::string, T>>& values,
            const Field&) {
    if (!node.is_mapping()) return context_.complain(node, key, Codec<std::vector<std::pair<std::string, T>>>::name());
    values.clear();
    for (const YamlNode::Member& member : node.members)
      read(member.value, key + "." + member.key, values.emplace_back(member.key, T{}).second, Field{});
  }
  template <typename T>
  void read(const YamlNode& node, const std::string& key, T& value, const Field& info) {
    T candidate = value;
    const bool ok = Codec<T>::read(node, candidate);
    const double number = ok ? as_number(candidate) : 0;
    if (!ok || (!std::isnan(number) && !info.range.contains(number))) {
      return context_.complain(node, key, Codec<T>::name() + info.range.to_string());
    }
    value = std::move(candidate);
  }

  const YamlNode& mapping_;
  std::string prefix_;
  std::string base_;
  ReadContext& context_;
  std::vector<std::string> known_;
};

/// Writes a struct as the YAML document that reads back equal.
class Writer {
 public:
  explicit Writer(int indent = 0) : indent_(indent) {}

  template <typename T>
  void field(const char* name, T& value, const Field&) {
    text_ += std::string(static_cast<size_t>(indent_), ' ') + name + ":";
    write(value);
  }
  const std::string& text() const { return text_; }

 private:
  void line(const std::string& value) { text_ += " " + value + "\n"; }
  void write(const Path& value) { line(write_string(value.text)); }
  void write(const std::optional<Path>& value) { line(value ? write_string(value->text) : "none"); }
  void write(const std::vector<Path>& values) {
    std::vector<std::string> texts;
    for (const Path& path : values) texts.push_back(path.text);
    line(values.empty() ? "none" : Codec<std::vector<std::string>>::write(texts));
  }
  template <typename T>
  requires Visitable<T, Writer>
  void write(T& value) {
    Writer inner(indent_ + 2);
    value.visit(inner);
    text_ += "\n" + inner.text();
  }
  template <typename T>
  requires Visitable<T, Writer>
  void write(std::optional<T>& value) {
    if (!value) return line("none");
    write(*value);
  }
  template <typename T>
  requires Visitable<T, Writer>
  void write(std::vector<T>& values) {
    if (values.empty()) return line("[]");
    text_ += "\n";
    for (T& value : values) {
      Writer inner(indent_ + 4);
      value.visit(inner);
      std::string item = inner.text();
      item[static_cast<size_t>(indent_) + 2] = '-';
      text_ += item;
    }
  }
  template <typename T>
  void write(const T& value) {
    line(Codec<T>::write(value));
  }

  int indent_;
  std::string text_;
};

/// Prints every key of a struct: name, type, default, meaning.
class SchemaPrinter {
 public:
  explicit SchemaPrinter(int indent = 0) : indent_(indent) {}

  template <typename T>
  void field(const char* name, T& value, const Field& info) {
    const std::string lead = std::string(static_cast<size_t>(indent_), ' ') + name + ": ";
    print(lead, value, info);
  }
  const std::string& text() const { return text_; }

 private:
  void leaf(const std::string& lead, const std::string& type, const std::string& fallback, const Field& info);
  template <typename T>
  void nested(const std::string& lead, T value, const Field& info) {
    text_ += lead + "# " + info.doc + "\n";
    SchemaPrinter inner(indent_ + 2);
    value.visit(inner);
    text_ += inner.text();
  }
  void print(const std::string& lead, const Path&, const Field& info) { leaf(lead, "a path", "", info); }
  void print(const std::string& lead, const std::optional<Path>&, const Field& info) {
    leaf(lead, "a path", "none", info);
  }
  void print(const std::string& lead, const std::vector<Path>&, const Field& info) {
    leaf(lead, "a path or a list of paths", "none", info);
  }
  template <typename T>
  requires Visitable<T, SchemaPrinter>
  void print(const std::string& lead, T& value, const Field& info) { nested(lead, value, info); }
  template <typename T>
  requires Visitable<T, SchemaPrinter>
  void print(const std::string& lead, std::optional<T>&, const Field& info) { nested(lead, T{}, info); }
  template <typename T>
  requires Visitable<T, SchemaPrinter>
  void print(const std::string& lead, std::vector<T>&, const Field& info) {
    nested(lead + "a list, each: ", T{}, info);
  }
  template <typename T>
  void print(const std::string& lead, const T& value, const Field& info) {
    leaf(lead, Codec<T>::name() + info.range.to_string(), Codec<T>::write(value), info);
  }

  int indent_;
  std::string text_;
};

}  // namespace lathe::config
