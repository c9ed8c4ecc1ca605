#include "lathe/arch/targets.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include "lathe/arch/regex.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

using Names = std::vector<std::string>;

bool is_all_linear(const formats::TargetModules& targets) {
  const auto* text = std::get_if<std::string>(&targets);
  if (text == nullptr) return false;
  std::string lower = *text;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower == "all-linear";
}

bool matches_any(const std::string& path, const Names& names) {
  return std::any_of(names.begin(), names.end(), [&](const auto& name) { return matches_module_name(path, name); });
}

// Whether `path` is a module of one of these names or lies inside of one.
// For each layer, whether `targets` means it.
std::vector<bool> matched_layers(const std::vector<LinearSpec>& linears, const formats::TargetModules& targets,
                                 const Arch& arch, const std::string& key, const Diagnostic& place) {
  std::vector<bool> matched;
  if (is_all_linear(targets)) {
    const Names heads = head_modules(arch);
    for (const LinearSpec& linear : linears) matched.push_back(!matches_any(linear.path, heads));
  } else if (const auto* names = std::get_if<Names>(&targets)) {
    for (const LinearSpec& linear : linears) matched.push_back(matches_any(linear.path, *names));
  } else {
    const Regex regex(std::get<std::string>(targets), key, place);
    for (const LinearSpec& linear : linears) matched.push_back(regex.matches_whole(linear.path));
  }
  return matched;
}

Names leaf_names(const std::vector<LinearSpec>& linears) {
  Names leaves;
  for (const LinearSpec& linear : linears) {
    std::string leaf = linear.path.substr(linear.path.rfind('.') + 1);
    if (std::find(leaves.begin(), leaves.end(), leaf) == leaves.end()) leaves.push_back(std::move(leaf));
  }
  return leaves;
}

[[noreturn]] void throw_no_match(const Diagnostic& place, const std::string& what, const std::string& name,
                                 const std::vector<LinearSpec>& linears) {
  Diagnostic diagnostic = place;
  diagnostic.problem = what + " matches no linear layer of the model";
  diagnostic.hint = suggest(name, leaf_names(linears));
  throw Error(ErrorKind::Config, diagnostic);
}

void check_every_name(const std::vector<LinearSpec>& linears, const Names& names, const Diagnostic& place) {
  for (const std::string& name : names) {
    const bool known = std::any_of(linears.begin(), linears.end(),
                                   [&](const LinearSpec& linear) { return matches_module_name(linear.path, name); });
    if (!known) throw_no_match(place, quote(name), name, linears);
  }
}

using Patterns = std::vector<std::pair<Regex, double>>;

Patterns compile_patterns(const std::vector<formats::Pattern>& patterns, const std::string& key,
                          const Diagnostic& place) {
  Patterns compiled;
  for (const auto& [pattern, value] : patterns) {
    (void)Regex(pattern, key, place);  // a message about what the user wrote
    compiled.emplace_back(Regex("(.*\\.)?(" + pattern + ")$", key, place), value);
  }
  return compiled;
}

double first_match(const std::string& path, const Patterns& patterns, double fallback) {
  for (const auto& [regex, value] : patterns) {
    if (regex.matches_start(path)) return value;
  }
  return fallback;
}

}  // namespace

bool is_within_any(const std::string& path, const std::vector<std::string>& names) {
  const std::string dotted = "." + path + ".";
  return std::any_of(names.begin(), names.end(),
                     [&](const auto& name) { return dotted.find("." + name + ".") != std::string::npos; });
}

bool matches_module_name(const std::string& path, const std::string& name) {
  return path == name || path.ends_with("." + name);
}

std::vector<Target> match_targets(const std::vector<LinearSpec>& linears, const formats::AdapterConfig& config,
                                  const Arch& arch, const Diagnostic& place, bool every_name) {
  const formats::TargetModules targets =
      config.target_modules.value_or(formats::TargetModules(default_target_modules(arch)));
  if (const auto* names = std::get_if<Names>(&targets); names != nullptr && every_name) {
    check_every_name(linears, *names, place);
  }
  const std::vector<bool> matched = matched_layers(linears, targets, arch, "target_modules", place);
  std::vector<bool> excluded(linears.size(), false);
  if (config.exclude_modules) {
    excluded = matched_layers(linears, *config.exclude_modules, arch, "exclude_modules", place);
  }
  Names saved = config.modules_to_save;
  if (config.task_type == "SEQ_CLS") {
    for (const std::string& head : head_modules(arch)) saved.push_back(head);
  }
  const Patterns ranks = compile_patterns(config.rank_pattern, "rank_pattern", place);
  const Patterns alphas = compile_patterns(config.alpha_pattern, "alpha_pattern", place);
  std::vector<Target> result;
  for (size_t i = 0; i < linears.size(); ++i) {
    const std::string& path = linears[i].path;
    if (!matched[i] || excluded[i] || is_within_any(path, saved)) continue;
    result.push_back({linears[i], static_cast<int64_t>(first_match(path, ranks, static_cast<double>(config.r))),
                      first_match(path, alphas, config.lora_alpha)});
  }
  if (result.empty()) {
    const auto* regex = std::get_if<std::string>(&targets);
    throw_no_match(place, regex != nullptr ? quote(*regex) : "the list", regex != nullptr ? *regex : "", linears);
  }
  return result;
}

}  // namespace lathe::arch
