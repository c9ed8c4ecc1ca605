#include "lathe/arch/arch.h"

#include <charconv>

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

std::vector<std::string> read_id2label(const JsonObject& config) {
  std::vector<std::string> labels;
  if (config.find("id2label") == nullptr) return labels;
  const JsonObject map = config.object("id2label");
  labels.resize(map.json().size());
  std::vector<bool> seen(labels.size());
  for (const auto& [key, value] : map.json().items()) {
    size_t index = labels.size();
    std::from_chars(key.data(), key.data() + key.size(), index);
    if (index >= labels.size() || seen[index] || std::to_string(index) != key || !value.is_string())
      throw map.error(key, "expected the numbers from 0 as keys, and strings");
    seen[index] = true;
    labels[index] = value.get<std::string>();
  }
  return labels;
}

// timm keeps them at the top level or in pretrained_cfg.
std::vector<std::string> read_label_names(const JsonObject& config) {
  const auto names_in = [](const JsonObject& object) {
    std::vector<std::string> labels;
    const Json* names = object.find("label_names");
    if (names == nullptr || !names->is_array()) return labels;
    for (const Json& name : *names) {
      if (!name.is_string())
        throw object.error("label_names", Diagnostic::expected("a list of strings", describe(*names)));
      labels.push_back(name.get<std::string>());
    }
    return labels;
  };
  std::vector<std::string> labels = names_in(config);
  if (labels.empty() && config.find("pretrained_cfg") != nullptr) labels = names_in(config.object("pretrained_cfg"));
  return labels;
}

std::string supported_types(Families families) {
  return families == Families::Built ? "supported: bert"
                                     : "supported: bert, llama, mistral, qwen2, qwen3, mixtral, qwen3_moe";
}

ModelConfig read_timm(const JsonObject& config) {
  const MixerArch arch = read_timm_mixer(config);
  return {arch, "mixer", read_label_names(config), read_image_input(config, arch), config.json()};
}

ModelConfig read_transformers(const JsonObject& config, Families families) {
  const std::string type = config.string("model_type");
  const bool planned = families == Families::Planned;
  if (planned && is_decoder(type)) return {read_decoder(config), type, {}, {}, config.json()};
  if (type != "bert")
    throw config.error("model_type", quote(type) + " is not supported yet", supported_types(families));
  ModelConfig result{read_bert(config), type, {}, {}, config.json()};
  const Json* architectures = config.find("architectures");
  const bool classifier = architectures != nullptr && architectures->is_array() && !architectures->empty() &&
                          architectures->front().is_string() &&
                          architectures->front().get<std::string>().ends_with("ForSequenceClassification");
  if (classifier) result.labels = read_id2label(config);
  return result;
}

// Calls visit(path of the experts, width, hidden width) for each layer that has them.
template <typename Visit>
void walk_experts(const Arch& arch, const Visit& visit) {
  if (!mlp_experts(arch)) return;
  const auto* bert = std::get_if<BertArch>(&arch);
  for (int64_t i = 0; i < num_layers(arch); ++i) {
    const std::string index = std::to_string(i);
    if (bert != nullptr) {
      visit("bert.encoder.layer." + index + ".moe.experts", bert->hidden_size, bert->intermediate_size);
    } else {
      const auto& mixer = std::get<MixerArch>(arch);
      visit("blocks." + index + ".moe.experts", mixer.hidden_size, mixer.channels_hidden_size);
    }
  }
}

}  // namespace

ModelConfig read_model_config(const std::string& path, Families families) {
  const Json json = read_json_file(path, 16 << 20);
  const JsonObject config(json, path);
  const bool timm = config.find("model_type") == nullptr && config.find("architecture") != nullptr;
  return timm ? read_timm(config) : read_transformers(config, families);
}

ModelConfig read_arch_mapping(const JsonObject& mapping, Families families) {
  const std::string type = mapping.string("model_type");
  if (type == "mixer") {
    const MixerArch arch = read_mixer(mapping);
    const std::vector<double> half(static_cast<size_t>(arch.num_channels), 0.5);
    return {arch, type, {}, ImageInput{half, half}, {}};
  }
  if (type == "bert") {
    mapping.refuse_other_keys({"model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                               "intermediate_size", "max_position_embeddings", "type_vocab_size", "pad_token_id",
                               "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob",
                               "classifier_dropout", "hidden_act"});
    return read_transformers(mapping, families);
  }
  if (families == Families::Planned && is_decoder(type)) {
    mapping.refuse_other_keys({"model_type",
                               "vocab_size",
                               "hidden_size",
                               "intermediate_size",
                               "num_hidden_layers",
                               "num_attention_heads",
                               "num_key_value_heads",
                               "head_dim",
                               "max_position_embeddings",
                               "tie_word_embeddings",
                               "attention_bias",
                               "mlp_bias",
                               "hidden_act",
                               "sliding_window",
                               "rms_norm_eps",
                               "rope_theta",
                               "num_local_experts",
                               "num_experts",
                               "num_experts_per_tok",
                               "moe_intermediate_size",
                               "norm_topk_prob",
                               "decoder_sparse_step",
                               "mlp_only_layers"});
    return read_transformers(mapping, families);
  }
  throw mapping.error("model_type", quote(type) + " is not supported yet", "supported: bert, mixer");
}

bool sees_images(const Arch& arch) { return std::holds_alternative<MixerArch>(arch); }
bool is_causal(const Arch& arch) { return std::holds_alternative<DecoderArch>(arch); }

bool override_dropout(Arch& arch, double rate) {
  auto* bert = std::get_if<BertArch>(&arch);
  if (bert == nullptr) return false;
  bert->hidden_dropout = bert->attention_dropout = rate;
  bert->classifier_dropout = rate;
  return true;
}

const std::optional<MlpExperts>& mlp_experts(const Arch& arch) {
  static const std::optional<MlpExperts> kNone;
  if (const auto* bert = std::get_if<BertArch>(&arch)) return bert->experts;
  if (const auto* mixer = std::get_if<MixerArch>(&arch)) return mixer->experts;
  return kNone;
}

std::optional<MlpExperts>& mlp_experts(Arch& arch) {
  auto* bert = std::get_if<BertArch>(&arch);
  return bert != nullptr ? bert->experts : std::get<MixerArch>(arch).experts;
}

int64_t num_layers(const Arch& arch) {
  const auto* mixer = std::get_if<MixerArch>(&arch);
  if (mixer != nullptr) return mixer->num_blocks;
  const auto* bert = std::get_if<BertArch>(&arch);
  return bert != nullptr ? bert->num_hidden_layers : std::get<DecoderArch>(arch).num_hidden_layers;
}

int64_t max_positions(const Arch& arch) {
  const auto* bert = std::get_if<BertArch>(&arch);
  return bert != nullptr ? bert->max_position_embeddings : std::get<DecoderArch>(arch).max_position_embeddings;
}

int64_t vocab_size(const Arch& arch) {
  const auto* bert = std::get_if<BertArch>(&arch);
  return bert != nullptr ? bert->vocab_size : std::get<DecoderArch>(arch).vocab_size;
}

std::vector<ParameterSpec> classifier_parameters(const Arch& arch, int64_t num_labels) {
  return std::visit([&](const auto& family) { return classifier_parameters(family, num_labels); }, arch);
}

std::vector<LinearSpec> classifier_linears(const Arch& arch, int64_t num_labels) {
  return std::visit([&](const auto& family) { return classifier_linears(family, num_labels); }, arch);
}

std::vector<LinearSpec> expert_linears(const Arch& arch) {
  std::vector<LinearSpec> linears;
  walk_experts(arch, [&](const std::string& path, int64_t width, int64_t hidden) {
    for (int64_t e = 0; e < mlp_experts(arch)->num_experts; ++e) {
      const std::string expert = path + "." + std::to_string(e);
      linears.push_back({expert + ".up_proj", width, hidden});
      linears.push_back({expert + ".down_proj", hidden, width});
    }
  });
  return linears;
}

std::vector<LinearSpec> expert_parameters(const Arch& arch) {
  std::vector<LinearSpec> parameters;
  walk_experts(arch, [&](const std::string& path, int64_t width, int64_t hidden) {
    const int64_t num_experts = mlp_experts(arch)->num_experts;
    parameters.push_back({path + ".up_proj", width, hidden, num_experts});
    parameters.push_back({path + ".down_proj", hidden, width, num_experts});
  });
  return parameters;
}

std::string head_module(const Arch& arch) {
  return sees_images(arch) ? "head" : is_causal(arch) ? "lm_head" : "classifier";
}

std::vector<std::string> head_modules(const Arch& arch) { return {head_module(arch)}; }

std::vector<std::string> default_target_modules(const Arch& arch) {
  if (sees_images(arch)) return {"fc1", "fc2"};
  if (is_causal(arch)) return {"q_proj", "v_proj"};
  return {"query", "value"};
}

}  // namespace lathe::arch
