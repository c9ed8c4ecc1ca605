#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace lathe::formats {

using Pattern =
    std::pair<std::string, double>;  ///< a regular expression and the number for the modules that it matches

/// Which modules an adapter wraps: names (equal, or the path ends with "." + name), or one regular expression for the
/// whole path. "all-linear" is a word of its own.
using TargetModules = std::variant<std::vector<std::string>, std::string>;

/// adapter_config.json of PEFT, as far as Lathe computes it. Field names are PEFT's.
struct AdapterConfig {
  std::string base_model_name_or_path;
  std::string task_type;  ///< "SEQ_CLS", "CAUSAL_LM", or empty
  int64_t r = 8;
  double lora_alpha = 8;
  double lora_dropout = 0;
  bool use_rslora = false;
  std::optional<TargetModules> target_modules;
  std::optional<TargetModules> exclude_modules;
  /// Tensors of all experts ("experts.down_proj"): equal, or the path ends with "." + name. Then target_modules may be
  /// absent or empty.
  std::vector<std::string> target_parameters;
  std::vector<std::string> modules_to_save;
  std::vector<Pattern> rank_pattern;  ///< in the file's order: the first match wins
  std::vector<Pattern> alpha_pattern;
};

/// Reads DIR/adapter_config.json. A key that changes the computation and that Lathe does not know or support is refused
/// when its value is not empty, never ignored. Throws Error{Data}.
AdapterConfig read_adapter_config(const std::string& directory);

/// The text of adapter_config.json: PEFT's stable keys, sorted, indented by 2.
std::string adapter_config_text(const AdapterConfig& config);

/// DIR/adapter_model.safetensors. Throws Error{Data} when it is missing, naming a pickled adapter if there is one.
std::string adapter_weights_path(const std::string& directory);

/// DIR/labels.json, the label names in order; none when the file is absent.
std::optional<std::vector<std::string>> read_labels(const std::string& directory);
std::string labels_text(const std::vector<std::string>& labels);

}  // namespace lathe::formats
