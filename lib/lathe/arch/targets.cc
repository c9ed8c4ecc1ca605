#include "lathe/arch/targets.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <utility>

#include "lathe/arch/regex.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

using Names = std::vector<std::string>;

constexpr int64_t kMaxAdaptedExperts = 1 << 18;  // in all layers

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

// For each layer, whether `targets` means it.
std::vector<bool> matched_layers(const std::vector<LinearSpec>& linears, const formats::TargetModules& targets,
                                 const Arch& arch, const std::string& key, const TargetsOrigin& origin) {
  std::vector<bool> matched;
  if (is_all_linear(targets)) {
    const Names heads = head_modules(arch);
    for (const LinearSpec& linear : linears) matched.push_back(!matches_any(linear.path, heads));
  } else if (const auto* names = std::get_if<Names>(&targets)) {
    for (const LinearSpec& linear : linears) matched.push_back(matches_any(linear.path, *names));
  } else {
    const Regex regex(std::get<std::string>(targets), origin.at(key), origin.kind);
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

[[noreturn]] void throw_no_match(const TargetsOrigin& origin, const std::string& key, const std::string& what,
                                 const std::string& hint) {
  Diagnostic diagnostic = origin.at(key);
  diagnostic.problem = what;
  diagnostic.hint = hint;
  throw Error(origin.kind, diagnostic);
}

constexpr const char* kNoLinear = " matches no linear layer of the model";

// A recipe's list of modules: every name must mean a layer.
void check_every_name(const std::vector<LinearSpec>& linears, const std::optional<formats::TargetModules>& modules,
                      const std::string& key, const TargetsOrigin& origin) {
  const auto* names = modules && origin.is_recipe() ? std::get_if<Names>(&*modules) : nullptr;
  if (names == nullptr) return;
  std::vector<Diagnostic> mistakes;
  for (const std::string& name : *names) {
    const bool known = std::any_of(linears.begin(), linears.end(),
                                   [&](const LinearSpec& linear) { return matches_module_name(linear.path, name); });
    if (known) continue;
    Diagnostic& mistake = mistakes.emplace_back(origin.at(key));
    mistake.problem = quote(name) + kNoLinear;
    mistake.hint = suggest(name, leaf_names(linears));
  }
  if (!mistakes.empty()) throw Error(origin.kind, std::move(mistakes));
}

std::vector<LinearSpec> matched_parameters(const std::vector<LinearSpec>& parameters, const Names& names,
                                           const TargetsOrigin& origin) {
  std::vector<LinearSpec> matched;
  std::copy_if(parameters.begin(), parameters.end(), std::back_inserter(matched),
               [&](const LinearSpec& parameter) { return matches_any(parameter.path, names); });
  for (const std::string& name : names) {
    const bool used = std::any_of(matched.begin(), matched.end(), [&](const LinearSpec& parameter) {
      return matches_module_name(parameter.path, name);
    });
    if (!used)
      throw_no_match(origin, "target_parameters", quote(name) + " matches no tensor of experts in the model",
                     suggest(name, leaf_names(parameters)));
  }
  return matched;
}

// rank_pattern or alpha_pattern.
class Patterns {
 public:
  Patterns(const std::vector<formats::Pattern>& patterns, std::string key, const TargetsOrigin& origin)
      : key_(std::move(key)), origin_(origin) {
    for (const auto& [pattern, value] : patterns) {
      (void)Regex(pattern, origin.at(key_), origin.kind);  // a message about what the user wrote
      compiled_.push_back({pattern, Regex("(.*\\.)?(" + pattern + ")$", origin.at(key_), origin.kind), value});
    }
  }

  double first_match(const std::string& path, double fallback) {
    for (Item& item : compiled_) {
      if (!item.regex.matches_start(path)) continue;
      item.used = true;
      return item.value;
    }
    return fallback;
  }

  // A pattern behind others that match all it could match is unused too.
  void check_every_pattern() const {
    for (const Item& item : compiled_) {
      if (!item.used)
        throw_no_match(origin_, key_, quote(item.pattern) + " decides for no adapted layer",
                       "it matches the end of a path, and the first that matches decides");
    }
  }

 private:
  struct Item {
    std::string pattern;
    Regex regex;
    double value;
    bool used = false;
  };

  std::string key_;
  const TargetsOrigin& origin_;
  std::vector<Item> compiled_;
};

}  // namespace

bool is_within_any(const std::string& path, const std::vector<std::string>& names) {
  const std::string dotted = "." + path + ".";
  return std::any_of(names.begin(), names.end(),
                     [&](const auto& name) { return dotted.find("." + name + ".") != std::string::npos; });
}

bool matches_module_name(const std::string& path, const std::string& name) {
  return path == name || path.ends_with("." + name);
}

TargetsOrigin origin_of_adapter(const std::string& directory) {
  return {ErrorKind::Data,
          [=](const std::string& key) { return Diagnostic{directory + "/adapter_config.json", 0, 0, key, "", ""}; }};
}

std::vector<Target> match_targets(const std::vector<LinearSpec>& linears, const formats::AdapterConfig& config,
                                  const Arch& arch, const TargetsOrigin& origin,
                                  const std::vector<LinearSpec>& parameters) {
  const Names usual = config.target_parameters.empty() ? default_target_modules(arch) : Names();
  const formats::TargetModules targets = config.target_modules.value_or(formats::TargetModules(usual));
  check_every_name(linears, targets, "target_modules", origin);
  check_every_name(linears, config.exclude_modules, "exclude_modules", origin);
  const std::vector<bool> matched = matched_layers(linears, targets, arch, "target_modules", origin);
  std::vector<bool> excluded(linears.size(), false);
  if (config.exclude_modules) {
    excluded = matched_layers(linears, *config.exclude_modules, arch, "exclude_modules", origin);
  }
  Names saved = config.modules_to_save;
  if (config.task_type == "SEQ_CLS") {
    for (const std::string& head : head_modules(arch)) saved.push_back(head);
  }
  Patterns ranks(config.rank_pattern, "rank_pattern", origin);
  Patterns alphas(config.alpha_pattern, "alpha_pattern", origin);
  const std::vector<LinearSpec> tensors = matched_parameters(parameters, config.target_parameters, origin);
  const auto holds_tensor = [&](const std::string& path) {
    return std::any_of(tensors.begin(), tensors.end(), [&](const LinearSpec& tensor) {
      return path.starts_with(tensor.path.substr(0, tensor.path.rfind('.') + 1));
    });
  };
  std::vector<Target> result;
  for (size_t i = 0; i < linears.size(); ++i) {
    const std::string& path = linears[i].path;
    if (!matched[i] || excluded[i] || is_within_any(path, saved) || holds_tensor(path)) continue;
    result.push_back({linears[i], static_cast<int64_t>(ranks.first_match(path, static_cast<double>(config.r))),
                      alphas.first_match(path, config.lora_alpha)});
  }
  const auto* listed = std::get_if<Names>(&targets);
  const bool no_modules = listed != nullptr && listed->empty() && !config.target_parameters.empty();
  if (result.empty() && !no_modules) {
    const auto* regex = std::get_if<std::string>(&targets);
    throw_no_match(origin, "target_modules", (regex != nullptr ? quote(*regex) : "the list") + kNoLinear,
                   suggest(regex != nullptr ? *regex : "", leaf_names(linears)));
  }
  for (const LinearSpec& parameter : tensors) {
    if (is_within_any(parameter.path, saved)) continue;
    result.push_back({parameter, static_cast<int64_t>(ranks.first_match(parameter.path, static_cast<double>(config.r))),
                      alphas.first_match(parameter.path, config.lora_alpha)});
  }
  if (origin.is_recipe()) {
    ranks.check_every_pattern();
    alphas.check_every_pattern();
  }
  return result;
}

std::vector<Target> classifier_targets(const Arch& arch, int64_t num_labels, const formats::AdapterConfig& config,
                                       const TargetsOrigin& origin) {
  if (const auto& experts = mlp_experts(arch); experts && num_layers(arch) > kMaxAdaptedExperts / experts->num_experts)
    throw_no_match(origin, "target_modules",
                   "the model has more than " + std::to_string(kMaxAdaptedExperts) + " experts", "");
  std::vector<LinearSpec> linears = classifier_linears(arch, num_labels);
  const std::vector<LinearSpec> experts = expert_linears(arch);
  linears.insert(linears.end(), experts.begin(), experts.end());
  return match_targets(linears, config, arch, origin, expert_parameters(arch));
}

}  // namespace lathe::arch
