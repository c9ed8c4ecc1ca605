#include "lathe/config/bind.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>

namespace lathe::config {
namespace {

std::string bound_text(double value) { return write_number(value); }

// The value of ${...}: false after noting the mistake. `text` is what a resolved recipe keeps of it.
bool expand(const std::string& variable, const YamlNode& node, const std::string& key, std::string& value,
            std::string& text, ReadContext& context) {
  if (variable == "cache") {
    value = text = cache_directory();
    return true;
  }
  if (variable.starts_with("env:")) {
    const char* found = std::getenv(variable.c_str() + 4);
    if (found == nullptr) {
      context.mistakes.push_back({node.file, node.line, node.column, key,
                                  "the environment variable " + quote(variable.substr(4)) + " is not set", ""});
      return false;
    }
    value = found;
    text = "${" + variable + "}";
    return true;
  }
  context.mistakes.push_back({node.file, node.line, node.column, key,
                              "unknown reference " + quote("${" + variable + "}"), "known: ${cache}, ${env:NAME}"});
  return false;
}

// Without "." and, where the system finds the same place, without "..": after a link or a reference it stays.
std::string tidy(const std::filesystem::path& path) {
  std::filesystem::path result;
  for (const std::filesystem::path& part : path) {
    if (part.empty() || part == ".") continue;
    std::error_code ignored;
    const std::string last = result.filename().string();
    const bool keeps =
        last == ".." || last.find("${") != std::string::npos || std::filesystem::is_symlink(result, ignored);
    result = part == ".." && !keeps ? result.parent_path() : result / part;
  }
  return result.string();
}

}  // namespace

bool Range::contains(double value) const {
  const bool low_ok = std::isnan(low) || value > low || (value == low && !low_excluded);
  const bool high_ok = std::isnan(high) || value < high || (value == high && !high_excluded);
  return low_ok && high_ok;
}

std::string Range::to_string() const {
  if (std::isnan(low)) return "";
  if (std::isnan(high)) return (low_excluded ? " > " : " >= ") + bound_text(low);
  return std::string(" in ") + (low_excluded ? "(" : "[") + bound_text(low) + ", " + bound_text(high) +
         (high_excluded ? ")" : "]");
}

Range at_least(double low) { return {.low = low}; }
Range above(double low) { return {.low = low, .low_excluded = true}; }
Range within(double low, double high) { return {.low = low, .high = high, .high_excluded = true}; }
Range between(double low, double high) { return {.low = low, .high = high}; }
Range above_up_to(double low, double high) { return {.low = low, .high = high, .low_excluded = true}; }

void ReadContext::complain(const YamlNode& node, const std::string& key, const std::string& expected) {
  mistakes.push_back({node.file, node.line, node.column, key, Diagnostic::expected(expected, node.describe()), ""});
}

bool parse_integer(const std::string& text, int64_t& value) {
  const char* end = text.data() + text.size();
  const size_t digits = text.starts_with('-') ? 1 : 0;
  if (text.size() <= digits || (text.size() > digits + 1 && text[digits] == '0')) return false;  // no octal look-alikes
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stopped == end;
}

bool parse_number(const std::string& text, double& value) {
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stopped == end && std::isfinite(value);
}

std::string write_number(double value) {
  std::array<char, 64> text{};
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  return {text.data(), end};
}

std::string write_string(const std::string& text) {
  static const std::set<std::string> kMisread = {"none", "null", "true", "false", "yes", "no",
                                                 "on",   "off",  "y",    "n",     "auto"};
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool plain_characters = std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.' || c == '/' || c == '+' || c >= 0x80;
  });
  // What begins with a digit, a sign or a point may be a number to another reader: 0x1F, 1_000, .inf.
  const bool plain_start = !text.empty() && std::strchr("+-.0123456789", text[0]) == nullptr;
  if (plain_start && plain_characters && !kMisread.contains(lower)) return text;
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += std::string("\\") + c;
    } else if (byte < 0x20 || byte == 0x7F) {
      constexpr const char* kHex = "0123456789ABCDEF";
      out += std::string("\\x") + kHex[byte >> 4] + kHex[byte & 15];
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string cache_directory() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (const std::string cache = variable("LATHE_CACHE"); !cache.empty())
    return std::filesystem::absolute(cache).string();
  if (const std::string cache = variable("XDG_CACHE_HOME"); !cache.empty()) return cache + "/lathe";
  return variable("HOME") + "/.cache/lathe";
}

bool resolve_path(const YamlNode& node, const std::string& key, const std::string& base, Path& path,
                  ReadContext& context) {
  std::string written;
  if (!Codec<std::string>::read(node, written)) {
    context.complain(node, key, "a path");
    return false;
  }
  if (written.empty()) {  // as a resolved recipe writes a path that is left out
    path = {};
    return true;
  }
  Path result;
  bool starts_with_reference = false;
  for (size_t at = 0; at < written.size();) {
    const size_t dollar = written.find("${", at);
    const std::string literal = written.substr(at, dollar == std::string::npos ? dollar : dollar - at);
    result.text += literal;
    result.resolved += literal;
    if (dollar == std::string::npos) break;
    const size_t close = written.find('}', dollar);
    if (close == std::string::npos) {
      context.mistakes.push_back({node.file, node.line, node.column, key, "${ without its }", ""});
      return false;
    }
    std::string value, text;
    const std::string variable = written.substr(dollar + 2, close - dollar - 2);
    if (!expand(variable, node, key, value, text, context)) return false;
    starts_with_reference = starts_with_reference || result.text.empty();
    result.text += text;
    result.resolved += value;
    at = close + 1;
  }
  if (result.resolved.starts_with("~/")) {
    context.mistakes.push_back({node.file, node.line, node.column, key, "a shell's ~ is not expanded in a recipe",
                                "write ${env:HOME}" + result.resolved.substr(1)});
    return false;
  }
  if (!result.resolved.starts_with("hf:")) {
    const std::filesystem::path origin =
        node.line == 0 || base.empty() ? std::filesystem::current_path() : std::filesystem::absolute(base);
    const auto absolute = [&](const std::string& relative) { return tidy(origin / relative); };
    result.resolved = absolute(result.resolved);
    if (!starts_with_reference) result.text = absolute(result.text);
  }
  if (find_invalid_utf8(result.resolved) != std::string::npos) {
    context.mistakes.push_back(
        {node.file, node.line, node.column, key, Diagnostic::expected("a path in UTF-8", quote(result.resolved)), ""});
    return false;
  }
  path = std::move(result);
  return true;
}

void Reader::read(const YamlNode& node, const std::string& key, std::vector<Path>& values, const Field&) {
  values.clear();
  if (is_none(node)) return;
  if (node.kind != YamlNode::Kind::Sequence) {
    resolve_path(node, key, base_, values.emplace_back(), context_);
    return;
  }
  for (const YamlNode& item : node.items) resolve_path(item, key, base_, values.emplace_back(), context_);
}

void Reader::missing(const std::string& key) {
  context_.mistakes.push_back({mapping_.file, mapping_.line, mapping_.column, key, "is required", ""});
}

void Reader::finish() {
  for (const YamlNode::Member& member : mapping_.members) {
    if (std::find(known_.begin(), known_.end(), member.key) != known_.end()) continue;
    context_.mistakes.push_back({member.value.file, member.line, member.column, prefix_ + printable(member.key),
                                 "unknown key", suggest(member.key, known_)});
  }
}

void SchemaPrinter::leaf(const std::string& lead, const std::string& type, const std::string& fallback,
                         const Field& info) {
  const std::string status =
      info.need == Need::Required ? "required" : "default " + (fallback.empty() ? "none" : fallback);
  text_ += lead + type + "; " + status + "  # " + info.doc + "\n";
}

}  // namespace lathe::config
