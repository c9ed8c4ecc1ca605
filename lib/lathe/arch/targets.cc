#include "lathe/arch/targets.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <memory>
#include <set>

#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

// A regular expression in Python's flavour as far as PCRE2 shares it, with limits on the work of a match.
class Regex {
 public:
  Regex(const std::string& pattern, const Diagnostic& place) : place_(place), pattern_(pattern) {
    int code = 0;
    size_t offset = 0;
    compiled_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  PCRE2_UTF | PCRE2_DOLLAR_ENDONLY, &code, &offset, nullptr));
    if (!compiled_) fail("a regular expression: " + message(code) + " at character " + std::to_string(offset + 1));
    context_.reset(pcre2_match_context_create(nullptr));
    pcre2_set_match_limit(context_.get(), 1'000'000);
    pcre2_set_depth_limit(context_.get(), 10'000);
    data_.reset(pcre2_match_data_create(1, nullptr));
  }

  bool matches_whole(const std::string& text) const { return match(text, PCRE2_ANCHORED | PCRE2_ENDANCHORED); }
  bool matches_start(const std::string& text) const { return match(text, PCRE2_ANCHORED); }

 private:
  bool match(const std::string& text, uint32_t options) const {
    const int result = pcre2_match(compiled_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, options,
                                   data_.get(), context_.get());
    if (result < 0 && result != PCRE2_ERROR_NOMATCH)
      fail("a regular expression that can be matched: " + message(result));
    return result >= 0;
  }
  static std::string message(int code) {
    std::array<PCRE2_UCHAR, 256> text{};
    pcre2_get_error_message(code, text.data(), text.size());
    return reinterpret_cast<const char*>(text.data());
  }
  [[noreturn]] void fail(const std::string& expected) const {
    Diagnostic diagnostic = place_;
    diagnostic.problem = Diagnostic::expected(expected, quote(pattern_));
    throw Error(ErrorKind::Config, diagnostic);
  }

  template <auto Free>
  struct Deleter {
    void operator()(auto* pointer) const { Free(pointer); }
  };
  Diagnostic place_;
  std::string pattern_;
  std::unique_ptr<pcre2_code, Deleter<pcre2_code_free>> compiled_;
  std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free>> context_;
  std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free>> data_;
};

bool is_all_linear(const formats::TargetModules& targets) {
  const auto* text = std::get_if<std::string>(&targets);
  if (text == nullptr) return false;
  std::string lower = *text;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower == "all-linear";
}

bool matches_any(const std::string& path, const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& name) { return matches_module_name(path, name); });
}

// The paths that `targets` means.
std::set<std::string> matched_paths(const std::vector<LinearSpec>& linears, const formats::TargetModules& targets,
                                    const Arch& arch, const Diagnostic& place) {
  std::set<std::string> paths;
  const auto* names = std::get_if<std::vector<std::string>>(&targets);
  if (is_all_linear(targets)) {
    const auto heads = head_modules(arch);
    for (const LinearSpec& linear : linears) {
      if (!matches_any(linear.path, heads)) paths.insert(linear.path);
    }
  } else if (names != nullptr) {
    for (const LinearSpec& linear : linears) {
      if (matches_any(linear.path, *names)) paths.insert(linear.path);
    }
  } else {
    const Regex regex(std::get<std::string>(targets), place);
    for (const LinearSpec& linear : linears) {
      if (regex.matches_whole(linear.path)) paths.insert(linear.path);
    }
  }
  return paths;
}

std::vector<std::string> leaf_names(const std::vector<LinearSpec>& linears) {
  std::vector<std::string> leaves;
  for (const LinearSpec& linear : linears) {
    std::string leaf = linear.path.substr(linear.path.rfind('.') + 1);
    if (std::find(leaves.begin(), leaves.end(), leaf) == leaves.end()) leaves.push_back(std::move(leaf));
  }
  return leaves;
}

[[noreturn]] void throw_no_match(const Diagnostic& place, const std::string& what,
                                 const std::vector<LinearSpec>& linears) {
  Diagnostic diagnostic = place;
  diagnostic.problem = what + " matches no linear layer of the model";
  diagnostic.hint = suggest(what.size() > 2 ? what.substr(1, what.size() - 2) : what, leaf_names(linears));
  throw Error(ErrorKind::Config, diagnostic);
}

double from_pattern(const std::string& path, const std::vector<std::pair<Regex, double>>& patterns, double fallback) {
  for (const auto& [regex, value] : patterns) {
    if (regex.matches_start(path)) return value;
  }
  return fallback;
}

std::vector<std::pair<Regex, double>> compile(const std::vector<formats::Pattern>& patterns, const Diagnostic& place) {
  std::vector<std::pair<Regex, double>> compiled;
  for (const auto& [pattern, value] : patterns)
    compiled.emplace_back(Regex("(.*\\.)?(" + pattern + ")$", place), value);
  return compiled;
}

}  // namespace

bool matches_module_name(const std::string& path, const std::string& name) {
  return path == name || path.ends_with("." + name);
}

std::vector<Target> match_targets(const std::vector<LinearSpec>& linears, const formats::AdapterConfig& config,
                                  const Arch& arch, const Diagnostic& place, bool every_name) {
  const formats::TargetModules targets =
      config.target_modules.value_or(formats::TargetModules(default_target_modules(arch)));
  if (const auto* names = std::get_if<std::vector<std::string>>(&targets); names != nullptr && every_name) {
    for (const std::string& name : *names) {
      const bool known = std::any_of(linears.begin(), linears.end(),
                                     [&](const LinearSpec& linear) { return matches_module_name(linear.path, name); });
      if (!known) throw_no_match(place, quote(name), linears);
    }
  }
  std::set<std::string> paths = matched_paths(linears, targets, arch, place);
  if (config.exclude_modules) {
    for (const std::string& path : matched_paths(linears, *config.exclude_modules, arch, place)) paths.erase(path);
  }
  const auto ranks = compile(config.rank_pattern, place), alphas = compile(config.alpha_pattern, place);
  std::vector<Target> result;
  for (const LinearSpec& linear : linears) {
    if (!paths.contains(linear.path) || matches_any(linear.path, config.modules_to_save)) continue;
    result.push_back({linear, static_cast<int64_t>(from_pattern(linear.path, ranks, static_cast<double>(config.r))),
                      from_pattern(linear.path, alphas, config.lora_alpha)});
  }
  if (result.empty()) {
    const auto* regex = std::get_if<std::string>(&targets);
    throw_no_match(place, regex != nullptr ? quote(*regex) : "the list", linears);
  }
  return result;
}

}  // namespace lathe::arch
