#include "lathe/recipe/resolve.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "lathe/base/error.h"
#include "lathe/base/json.h"

namespace lathe::recipe {
namespace {

Error config_error(Diagnostic place, const std::string& problem, const std::string& hint = "") {
  place.problem = problem;
  place.hint = hint;
  return {ErrorKind::Config, std::move(place)};
}

formats::TargetModules to_target_modules(const Names& names) {
  return std::visit([](const auto& value) { return formats::TargetModules(value); }, names.value);
}

formats::AdapterConfig config_of_recipe(const Recipe& recipe) {
  const Adapter& adapter = recipe.adapter;
  formats::AdapterConfig config;
  config.r = adapter.rank.value_or(config.r);
  config.lora_alpha = adapter.alpha.value_or(config.lora_alpha);
  config.lora_dropout = adapter.dropout;
  config.use_rslora = adapter.scaling == Scaling::RsLoRA;
  if (adapter.target_modules) config.target_modules = to_target_modules(*adapter.target_modules);
  if (!adapter.exclude_modules.empty()) config.exclude_modules = adapter.exclude_modules;
  config.modules_to_save = adapter.modules_to_save;
  for (const auto& [pattern, rank] : adapter.rank_pattern)
    config.rank_pattern.emplace_back(pattern, static_cast<double>(rank));
  config.alpha_pattern = adapter.alpha_pattern;
  return config;
}

// The file's rank, alpha, targets and patterns; the recipe may repeat them but not contradict them.
formats::AdapterConfig config_of_file(const Recipe& recipe) {
  formats::AdapterConfig config = formats::read_adapter_config(recipe.adapter.from->resolved);
  formats::read_safetensors_header(formats::adapter_weights_path(recipe.adapter.from->resolved));
  const formats::AdapterConfig own = config_of_recipe(recipe);
  const auto agree = [&](const char* key, bool same) {
    const std::string dotted = std::string("adapter.") + key;
    if (recipe.places.contains(dotted) && !same) {
      throw config_error(recipe.at(dotted), "differs from what adapter.from says",
                         "leave it out: the adapter's file decides");
    }
  };
  agree("rank", own.r == config.r);
  agree("alpha", own.lora_alpha == config.lora_alpha);
  agree("scaling", own.use_rslora == config.use_rslora);
  agree("target_modules", own.target_modules == config.target_modules);
  agree("exclude_modules", own.exclude_modules == config.exclude_modules);
  const auto sorted = [](std::vector<std::string> names) {
    std::sort(names.begin(), names.end());
    return names;
  };
  agree("modules_to_save", sorted(own.modules_to_save) == sorted(config.modules_to_save));
  agree("rank_pattern", own.rank_pattern == config.rank_pattern);
  agree("alpha_pattern", own.alpha_pattern == config.alpha_pattern);
  if (recipe.places.contains("adapter.dropout")) config.lora_dropout = own.lora_dropout;
  if (config.lora_dropout > 0 && !config.target_parameters.empty())
    throw config_error(recipe.at("adapter.dropout"), "has no meaning for the target_parameters of adapter.from");
  return config;
}

bool has_module(const std::vector<arch::ParameterSpec>& parameters, const std::string& name) {
  return std::any_of(parameters.begin(), parameters.end(), [&](const arch::ParameterSpec& parameter) {
    for (size_t dot = parameter.name.find('.'); dot != std::string::npos; dot = parameter.name.find('.', dot + 1)) {
      if (arch::matches_module_name(parameter.name.substr(0, dot), name)) return true;
    }
    return false;
  });
}

void check_modules_to_save(const Recipe& recipe, const arch::Arch& arch) {
  const auto parameters = arch::classifier_parameters(arch, 2);
  for (const std::string& name : recipe.adapter.modules_to_save) {
    if (!has_module(parameters, name))
      throw config_error(recipe.at("adapter.modules_to_save"), quote(name) + " is no module of the model");
  }
}

void resolve_adapter(const Recipe& recipe, ResolvedModel& model) {
  if (recipe.adapter.type == AdapterType::None) return;
  const bool from_file = recipe.adapter.from.has_value();
  formats::AdapterConfig config = from_file ? config_of_file(recipe) : config_of_recipe(recipe);
  config.base_model_name_or_path = recipe.model.path.text;
  if (arch::is_causal(model.config.arch)) {
    config.task_type = "CAUSAL_LM";
  } else {
    // PEFT's wrapper for SEQ_CLS wants a model of transformers.
    if (!arch::sees_images(model.config.arch)) config.task_type = "SEQ_CLS";
    for (const std::string& head : arch::head_modules(model.config.arch)) {
      const auto& saved = config.modules_to_save;
      if (std::find(saved.begin(), saved.end(), head) == saved.end()) config.modules_to_save.push_back(head);
    }
  }
  if (!from_file) check_modules_to_save(recipe, model.config.arch);
  if (!config.target_modules && config.target_parameters.empty())
    config.target_modules = arch::default_target_modules(model.config.arch);
  const arch::TargetsOrigin origin =
      from_file
          ? arch::origin_of_adapter(recipe.adapter.from->resolved)
          : arch::TargetsOrigin{ErrorKind::Config, [&](const std::string& key) { return recipe.at("adapter." + key); }};
  model.targets = arch::classifier_targets(model.config.arch, 2, config, origin);
  const auto on_head = [](const arch::Target& target) { return target.linear.path == "lm_head"; };
  if (std::any_of(model.targets.begin(), model.targets.end(), on_head))
    throw config_error(recipe.at("adapter.target_modules"), "an adapter of lm_head is not supported yet");
  model.adapter = std::move(config);
}

// The checkpoint's preprocessing, with what the recipe says instead.
void resolve_image(const Recipe& recipe, ResolvedModel& model) {
  const auto& mixer = std::get<arch::MixerArch>(model.config.arch);
  arch::ImageInput& input = *model.config.image;
  model.max_length = mixer.num_patches();
  if (mixer.num_channels != 1 && mixer.num_channels != 3)
    throw config_error(recipe.at("model"),
                       "pictures have 1 or 3 channels, the model " + std::to_string(mixer.num_channels));
  const Image image = recipe.data.image.value_or(Image());
  if (image.size && (image.size->height != mixer.image_height || image.size->width != mixer.image_width)) {
    throw config_error(recipe.at("data.image.size"),
                       Diagnostic::expected("the model's " + std::to_string(mixer.image_height) + " x " +
                                                std::to_string(mixer.image_width),
                                            config::Codec<ImageSize>::write(*image.size)));
  }
  const auto per_channel = [&](const char* key, const std::vector<double>& given, std::vector<double>& value) {
    if (given.empty()) return;
    if (static_cast<int64_t>(given.size()) != mixer.num_channels)
      throw config_error(recipe.at(key), Diagnostic::expected(std::to_string(mixer.num_channels) +
                                                                  " numbers, one per channel of the model",
                                                              std::to_string(given.size())));
    value = given;
  };
  per_channel("data.image.mean", image.mean, input.mean);
  per_channel("data.image.std", image.std, input.std);
  if (image.resize) input.interpolation = config::Codec<Resize>::write(*image.resize);
}

// labels.json of the adapter that training starts from, unless the recipe says the same.
void check_labels_of_adapter(const Recipe& recipe) {
  if (!recipe.adapter.from || recipe.data.labels.empty()) return;
  const auto labels = formats::read_labels(recipe.adapter.from->resolved);
  if (!labels || *labels == recipe.data.labels) return;
  throw config_error(recipe.at("data.labels"), Diagnostic::expected("the adapter's labels, " + join(*labels, ", "),
                                                                    join(recipe.data.labels, ", ")));
}

void resolve_labels(const Recipe& recipe, ResolvedModel& model) {
  check_labels_of_adapter(recipe);
  model.labels = recipe.data.labels;
  if (model.labels.empty() && recipe.adapter.from)
    model.labels = formats::read_labels(recipe.adapter.from->resolved).value_or(std::vector<std::string>());
  if (model.labels.empty()) model.labels = model.config.labels;
}

// check_support() lets causal_lm pass for plans alone.
arch::Families families(const Recipe& recipe) {
  return recipe.model.task == Task::CausalLm ? arch::Families::Planned : arch::Families::Built;
}

// A mapping of the recipe, read by what reads files: its mistakes are the recipe's.
arch::ModelConfig read_arch(const Recipe& recipe) {
  try {
    return arch::read_arch_mapping(JsonObject(recipe.model.arch->json, "", "model.arch"), families(recipe));
  } catch (const Error& error) {
    std::vector<Diagnostic> mistakes = error.diagnostics();
    for (Diagnostic& mistake : mistakes) {
      const Diagnostic place = recipe.at("model.arch");
      mistake.file = place.file;
      mistake.line = place.line;
      mistake.column = place.column;
    }
    throw Error(ErrorKind::Config, std::move(mistakes));
  }
}

void open_model(const Recipe& recipe, ResolvedModel& model) {
  const std::string& path = recipe.model.path.resolved;
  model.random = recipe.model.init == Init::Random;
  if (!model.random) {
    const bool needs_weights = recipe.model.task != Task::CausalLm;  // which is planned only
    model.directory =
        needs_weights ? formats::ModelDirectory::open(path) : formats::ModelDirectory::open_as_it_is(path);
  } else if (!path.empty()) {
    model.directory = formats::ModelDirectory::open_without_weights(path);
  }
  model.config =
      recipe.model.arch ? read_arch(recipe) : arch::read_model_config(model.directory.config_path(), families(recipe));
  if (arch::is_causal(model.config.arch) && model.config.json.contains("quantization_config")) {
    throw data_error_in(model.directory.config_path(), "quantization_config", "is not supported yet for a decoder",
                        "plan the 16-bit checkpoint with quant.type: nf4");
  }
  if (recipe.model.dropout && !arch::override_dropout(model.config.arch, *recipe.model.dropout))
    throw config_error(recipe.at("model.dropout"), "has no meaning for a " + model.config.model_type);
}

// Experts of the recipe in the place of the MLPs of a new model; of a checkpoint that has experts, their balance.
void resolve_experts(const Recipe& recipe, ResolvedModel& model) {
  if (!recipe.model.moe) return;
  if (arch::is_causal(model.config.arch))
    throw config_error(recipe.at("model.moe"), "is not supported yet for a decoder", "its config.json decides");
  std::optional<arch::MlpExperts>& experts = arch::mlp_experts(model.config.arch);
  if (!experts && !model.random) {
    throw config_error(recipe.at("model.moe"), "needs a checkpoint with experts, or model.init: random",
                       "lathe upcycle makes experts of a checkpoint's MLPs");
  }
  const arch::MlpExperts base = experts.value_or(arch::MlpExperts{}), wanted = recipe.model.moe->over(base);
  const auto keep = [&](const char* key, bool same) {
    if (!model.random && !same)
      throw config_error(recipe.at(std::string("model.moe.") + key), "differs from the checkpoint's",
                         "leave it out: the checkpoint decides");
  };
  keep("num_experts", wanted.num_experts == base.num_experts);
  keep("top_k", wanted.top_k == base.top_k);
  keep("router", wanted.router == base.router);
  keep("renormalise", wanted.renormalise == base.renormalise);
  keep("shared_experts", wanted.shared_experts == base.shared_experts);
  for (const arch::ExpertsMistake& mistake : arch::check_mlp_experts(wanted))
    throw config_error(recipe.at("model.moe." + mistake.key), mistake.problem);
  experts = wanted;
}

void check_task(const Recipe& recipe, const ResolvedModel& model) {
  const Task task = arch::sees_images(model.config.arch) ? Task::ImageClassification
                    : arch::is_causal(model.config.arch) ? Task::CausalLm
                                                         : Task::Classification;
  if (task == recipe.model.task) return;
  throw config_error(
      recipe.at("model.task"),
      Diagnostic::expected(config::Codec<Task>::write(task), config::Codec<Task>::write(recipe.model.task)),
      "the model is a " + model.config.model_type);
}

void resolve_length(const Recipe& recipe, ResolvedModel& model) {
  const int64_t positions = arch::max_positions(model.config.arch);
  model.max_length = recipe.model.max_length.value_or(default_max_length(model.directory, model.config.arch));
  if (model.max_length > positions) {
    throw config_error(recipe.at("model.max_length"),
                       Diagnostic::expected("at most the model's " + std::to_string(positions) + " positions",
                                            std::to_string(model.max_length)));
  }
}

// A checkpoint in four bits: how is what its files say; the recipe may repeat it but not contradict it.
void check_four_bit(const Recipe& recipe, const arch::CheckpointMatch& match) {
  if (!arch::has_four_bit(match)) return;
  if (recipe.adapter.type == AdapterType::None)
    throw config_error(recipe.at("adapter.type"), "none needs dense weights: the checkpoint is in four bits");
  const Quant& quant = recipe.quant;
  if (quant.type == QuantType::None) return;
  for (const auto& item : match.items) {
    if (item.four_bit == nullptr) continue;
    const formats::FourBitState& state = item.four_bit->state;
    if (state.quant_type == config::Codec<QuantType>::write(quant.type) && state.blocksize == quant.blocksize &&
        state.nested == quant.double_quant)
      continue;
    throw config_error(recipe.at("quant.type"), "differs from the checkpoint, which is in four bits already",
                       "leave the section quant out: the files decide");
  }
}

}  // namespace

int64_t default_max_length(const formats::ModelDirectory& directory, const arch::Arch& arch) {
  const std::string file = directory.path() + "/tokenizer_config.json";
  const int64_t length = arch::max_positions(arch);
  if (!std::filesystem::exists(file)) return length;
  const Json json = read_json_file(file, 16 << 20);
  const JsonObject config(json, file);
  const Json* limit = config.find("model_max_length");
  if (limit == nullptr) return length;
  // "No limit" is written as 1e30, in digits.
  const double value = limit->is_number() ? limit->get<double>() : 0;
  if (value < 3 || value != std::floor(value))
    throw config.error("model_max_length", Diagnostic::expected("an integer >= 3", describe(*limit)));
  return value < static_cast<double>(length) ? static_cast<int64_t>(value) : length;
}

StorageType ResolvedModel::stored_dtype(StorageType wanted) const {
  if (wanted != StorageType::Auto || random || !arch::is_causal(config.arch)) return wanted;
  const auto& tensors = directory.tensors();
  if (!tensors.empty()) {
    const auto largest = std::max_element(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
      return a.info.num_bytes() < b.info.num_bytes();
    });
    return formats::dtype_bits(largest->info.dtype) == 16 ? StorageType::BFloat16 : StorageType::Float32;
  }
  const JsonObject json(config.json, directory.config_path());
  const std::string dtype = json.string(json.find("dtype") != nullptr ? "dtype" : "torch_dtype", "float32");
  return dtype == "bfloat16" || dtype == "float16" ? StorageType::BFloat16 : StorageType::Float32;
}

arch::CheckpointMatch ResolvedModel::match(int64_t num_labels) const {
  const auto* decoder = std::get_if<arch::DecoderArch>(&config.arch);
  const bool experts_differ = decoder != nullptr && decoder->moe;  // fused in the module, often one by one in files
  return random || directory.tensors().empty() || experts_differ
             ? arch::match_nothing(config.arch, num_labels)
             : arch::match_checkpoint(directory, config.arch, num_labels);
}

ResolvedModel resolve_model(const Recipe& recipe) {
  ResolvedModel model;
  open_model(recipe, model);
  check_task(recipe, model);
  resolve_experts(recipe, model);
  if (arch::sees_images(model.config.arch)) {
    resolve_image(recipe, model);
  } else {
    resolve_length(recipe, model);
  }
  resolve_adapter(recipe, model);
  resolve_labels(recipe, model);
  const std::vector<int64_t> head = model.directory.shape_of(arch::head_module(model.config.arch) + ".weight");
  const bool head_decides = model.labels.empty() && !head.empty();
  const int64_t num_labels = head_decides ? head[0] : std::max<int64_t>(2, static_cast<int64_t>(model.labels.size()));
  check_four_bit(recipe, model.match(num_labels));
  return model;
}

}  // namespace lathe::recipe
