#include "lathe/formats/adapter_directory.h"

#include <cmath>
#include <filesystem>
#include <set>

#include "lathe/base/error.h"
#include "lathe/base/json.h"
#include "lathe/base/text.h"

namespace lathe::formats {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxRank = 1 << 16;

// Keys that say how the adapter came about, not what it computes.
const std::set<std::string> kHarmless = {
    "auto_mapping",   "base_model_name_or_path", "revision",     "inference_mode", "peft_version",
    "runtime_config", "megatron_core",           "loftq_config", "eva_config",     "corda_config",
    "lora_ga_config", "qalora_group_size"};

const std::set<std::string> kRead = {"init_lora_weights", "peft_type",       "task_type",    "r",
                                     "lora_alpha",        "lora_dropout",    "use_rslora",   "target_modules",
                                     "exclude_modules",   "modules_to_save", "rank_pattern", "alpha_pattern",
                                     "target_parameters"};

bool is_truthy(const Json& value) {
  if (value.is_null()) return false;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value.get<double>() != 0;
  if (value.is_string()) return !value.get<std::string>().empty();
  return !value.empty();
}

void refuse_unsupported(const JsonObject& config) {
  for (const auto& [key, value] : config.json().items()) {
    const bool layer_zero = key == "layers_to_transform" && value.is_number();
    if (kHarmless.contains(key) || kRead.contains(key) || (!is_truthy(value) && !layer_zero)) continue;
    if (key == "bias" && value == "none") continue;
    throw config.error(key, describe(value) + " is not supported",
                       "it changes what the adapter computes; Lathe reads plain LoRA adapters");
  }
}

// The methods that leave the base's weights alone; after the others the saved A and B are right on a changed base only.
void check_initialisation(const JsonObject& config) {
  const Json* init = config.find("init_lora_weights");
  if (init == nullptr || init->is_boolean()) return;
  for (const char* harmless : {"gaussian", "orthogonal", "eva", "mica"}) {
    if (*init == harmless) return;
  }
  throw config.error("init_lora_weights", describe(*init) + " is not supported: it has changed the base's weights",
                     "in PEFT: save_pretrained(DIR, path_initial_model_for_weight_conversion=...)");
}

std::vector<std::string> read_strings(const JsonObject& config, const std::string& key) {
  std::vector<std::string> strings;
  const Json* value = config.find(key);
  if (value == nullptr) return strings;
  if (!value->is_array()) throw config.error(key, Diagnostic::expected("an array of strings", describe(*value)));
  for (const Json& item : *value) {
    if (!item.is_string()) throw config.error(key, Diagnostic::expected("strings", describe(item)));
    strings.push_back(item.get<std::string>());
  }
  return strings;
}

std::optional<TargetModules> read_targets(const JsonObject& config, const std::string& key) {
  const Json* value = config.find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  return read_strings(config, key);
}

std::vector<Pattern> read_patterns(const JsonObject& config, const std::string& key, bool integers) {
  std::vector<Pattern> patterns;
  if (config.find(key) == nullptr) return patterns;
  const JsonObject map = config.object(key);
  for (const auto& [pattern, number] : map.json().items()) {
    if (integers) map.integer_of(pattern, number, 1, kMaxRank);
    if (!number.is_number() || number.get<double>() <= 0)
      throw map.error(pattern, Diagnostic::expected("a number above 0", describe(number)));
    const auto value = number.get<double>();
    patterns.emplace_back(pattern, value);
  }
  return patterns;
}

Json to_json(const TargetModules& targets) {
  return std::visit([](const auto& value) { return Json(value); }, targets);
}

// A whole number prints as an integer, as PEFT writes alphas.
Json to_json(double value) {
  return value == std::floor(value) && std::abs(value) < 1e15 ? Json(static_cast<int64_t>(value)) : Json(value);
}

Json to_json(const std::vector<Pattern>& patterns) {
  Json map = Json::object();
  for (const auto& [pattern, value] : patterns) map[pattern] = to_json(value);
  return map;
}

}  // namespace

AdapterConfig read_adapter_config(const std::string& directory) {
  const std::string file = directory + "/adapter_config.json";
  if (!fs::exists(file))
    throw data_error(file, "no such file",
                     "an adapter directory holds adapter_config.json and adapter_model.safetensors");
  const Json json = read_json_file(file, 16 << 20);
  const JsonObject object(json, file);
  if (const std::string type = object.string("peft_type"); type != "LORA") {
    throw object.error("peft_type", quote(type) + " is not supported", "supported: LORA");
  }
  refuse_unsupported(object);
  check_initialisation(object);
  AdapterConfig config;
  config.base_model_name_or_path = object.string("base_model_name_or_path", "");
  config.task_type = object.string("task_type", "");
  config.r = object.integer("r", 1, kMaxRank, 8);
  config.lora_alpha = object.number("lora_alpha", 8);
  if (config.lora_alpha <= 0)
    throw object.error("lora_alpha", Diagnostic::expected("a number above 0", describe(*object.find("lora_alpha"))));
  config.lora_dropout = object.number("lora_dropout", 0);
  if (config.lora_dropout < 0 || config.lora_dropout >= 1) {
    throw object.error("lora_dropout",
                       Diagnostic::expected("a number in [0, 1)", describe(*object.find("lora_dropout"))));
  }
  config.use_rslora = object.boolean("use_rslora", false);
  config.target_modules = read_targets(object, "target_modules");
  config.exclude_modules = read_targets(object, "exclude_modules");
  config.target_parameters = read_strings(object, "target_parameters");
  if (!config.target_parameters.empty() && config.lora_dropout > 0)
    throw object.error("lora_dropout", "has no meaning for target_parameters", "PEFT has none there either");
  config.modules_to_save = read_strings(object, "modules_to_save");
  config.rank_pattern = read_patterns(object, "rank_pattern", true);
  config.alpha_pattern = read_patterns(object, "alpha_pattern", false);
  return config;
}

std::string adapter_config_text(const AdapterConfig& config) {
  Json json = {
      // in the order of the keys; patterns keep theirs, since the first match wins
      {"alpha_pattern", to_json(config.alpha_pattern)},
      {"auto_mapping", nullptr},
      {"base_model_name_or_path", nullptr},
      {"bias", "none"},
      {"exclude_modules", nullptr},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"layer_replication", nullptr},
      {"layers_pattern", nullptr},
      {"layers_to_transform", nullptr},
      {"lora_alpha", to_json(config.lora_alpha)},
      {"lora_bias", false},
      {"lora_dropout", config.lora_dropout},
      {"modules_to_save", nullptr},
      {"peft_type", "LORA"},
      {"r", config.r},
      {"rank_pattern", to_json(config.rank_pattern)},
      {"revision", nullptr},
      {"target_modules", nullptr},
      {"target_parameters", nullptr},
      {"task_type", nullptr},
      {"use_dora", false},
      {"use_rslora", config.use_rslora},
  };
  if (!config.base_model_name_or_path.empty()) json["base_model_name_or_path"] = config.base_model_name_or_path;
  if (config.exclude_modules) json["exclude_modules"] = to_json(*config.exclude_modules);
  if (config.target_modules) json["target_modules"] = to_json(*config.target_modules);
  if (!config.target_parameters.empty()) json["target_parameters"] = config.target_parameters;
  if (!config.modules_to_save.empty()) json["modules_to_save"] = config.modules_to_save;
  if (!config.task_type.empty()) json["task_type"] = config.task_type;
  return json.dump(2) + "\n";
}

std::string adapter_weights_path(const std::string& directory) {
  std::string file = directory + "/adapter_model.safetensors";
  if (fs::exists(file)) return file;
  if (const std::string pickled = directory + "/adapter_model.bin"; fs::exists(pickled)) {
    throw data_error(pickled, "holds pickled weights, which can run code when read",
                     "save the adapter with PEFT's save_pretrained(DIR), which writes safetensors");
  }
  throw data_error(file, "no such file");
}

std::optional<std::vector<std::string>> read_labels(const std::string& directory) {
  const std::string file = directory + "/labels.json";
  if (!fs::exists(file)) return std::nullopt;
  const Json json = read_json_file(file, 16 << 20);
  std::vector<std::string> labels;
  if (!json.is_array() || json.empty()) {
    throw data_error(file, Diagnostic::expected("an array of label names", describe(json)));
  }
  std::set<std::string> seen;
  for (const Json& item : json) {
    if (!item.is_string()) throw data_error(file, Diagnostic::expected("label names", describe(item)));
    labels.push_back(item.get<std::string>());
    if (!seen.insert(labels.back()).second) throw data_error(file, "names the label " + describe(item) + " twice");
  }
  return labels;
}

std::string labels_text(const std::vector<std::string>& labels) { return Json(labels).dump() + "\n"; }

}  // namespace lathe::formats
