#include "lathe/arch/bert.h"

#include <functional>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

constexpr std::string_view kPrefix = "bert.";
// transformers' initializer_range.
constexpr Initial kNormal = {Initial::Kind::Normal, 0.02}, kOnes = {Initial::Kind::Constant, 1};

double read_dropout(const JsonObject& config, const std::string& key, double fallback) {
  const double rate = config.number(key, fallback);
  if (rate < 0 || rate >= 1)
    throw config.error(key, Diagnostic::expected("a number in [0, 1)", describe(*config.find(key))));
  return rate;
}

Activation read_activation(const JsonObject& config) {
  const std::string name = config.string("hidden_act", "gelu");
  if (name == "gelu") return Activation::Gelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::GeluTanh;
  throw config.error("hidden_act", quote(name) + " is not supported", "supported: gelu, gelu_new, gelu_pytorch_tanh");
}

void refuse_other_computations(const JsonObject& config) {
  if (const std::string type = config.string("position_embedding_type", "absolute"); type != "absolute") {
    throw config.error("position_embedding_type", quote(type) + " is not supported", "supported: absolute");
  }
  const std::string kind = "single_label_classification";
  if (const std::string type = config.string("problem_type", kind); type != kind)
    throw config.error("problem_type", quote(type) + " is not supported", "supported: " + kind);
  for (const char* key : {"is_decoder", "add_cross_attention"}) {
    if (config.boolean(key, false)) throw config.error(key, "true is not supported for an encoder");
  }
  if (const Json* heads = config.find("pruned_heads"); heads != nullptr && !heads->empty()) {
    throw config.error("pruned_heads", describe(*heads) + " is not supported");
  }
}

// The modules of a BERT classifier, walked once for all lists: linear(path, in, out), norm(path), table(path, rows).
template <typename Linear, typename Norm, typename Table>
void walk_bert(
    const BertArch& arch, int64_t num_labels, Linear linear, Norm norm, Table table,
    const std::function<void(const std::string&)>& experts = [](const std::string&) {}) {
  table("bert.embeddings.word_embeddings", arch.vocab_size);
  table("bert.embeddings.position_embeddings", arch.max_position_embeddings);
  table("bert.embeddings.token_type_embeddings", arch.type_vocab_size);
  norm("bert.embeddings.LayerNorm");
  for (int64_t i = 0; i < arch.num_hidden_layers; ++i) {
    const std::string layer = "bert.encoder.layer." + std::to_string(i);
    for (const char* name : {"query", "key", "value"})
      linear(layer + ".attention.self." + name, arch.hidden_size, arch.hidden_size);
    linear(layer + ".attention.output.dense", arch.hidden_size, arch.hidden_size);
    norm(layer + ".attention.output.LayerNorm");
    if (arch.experts) {
      experts(layer + ".moe");
    } else {
      linear(layer + ".intermediate.dense", arch.hidden_size, arch.intermediate_size);
      linear(layer + ".output.dense", arch.intermediate_size, arch.hidden_size);
    }
    norm(layer + ".output.LayerNorm");
  }
  linear("bert.pooler.dense", arch.hidden_size, arch.hidden_size);
  linear("classifier", arch.hidden_size, num_labels);
}

}  // namespace

BertArch read_bert(const JsonObject& config) {
  refuse_other_computations(config);
  BertArch arch;
  arch.vocab_size = config.integer("vocab_size", 1, kMaxSize);
  arch.hidden_size = config.integer("hidden_size", 1, kMaxSize);
  arch.num_hidden_layers = config.integer("num_hidden_layers", 1, kMaxLayers);
  arch.num_attention_heads = config.integer("num_attention_heads", 1, kMaxSize);
  arch.intermediate_size = config.integer("intermediate_size", 1, kMaxSize);
  arch.max_position_embeddings = config.integer("max_position_embeddings", 3, kMaxSize, 512);
  arch.type_vocab_size = config.integer("type_vocab_size", 1, kMaxSize, 2);
  arch.pad_token_id = config.integer("pad_token_id", 0, arch.vocab_size - 1, 0);
  if (arch.hidden_size % arch.num_attention_heads != 0) {
    throw config.error("hidden_size", Diagnostic::expected("a multiple of num_attention_heads = " +
                                                               std::to_string(arch.num_attention_heads),
                                                           std::to_string(arch.hidden_size)));
  }
  arch.layer_norm_eps = config.number("layer_norm_eps", 1e-12);
  if (arch.layer_norm_eps <= 0)
    throw config.error("layer_norm_eps",
                       Diagnostic::expected("a number above 0", describe(*config.find("layer_norm_eps"))));
  arch.hidden_dropout = read_dropout(config, "hidden_dropout_prob", 0.1);
  arch.attention_dropout = read_dropout(config, "attention_probs_dropout_prob", 0.1);
  if (config.find("classifier_dropout") != nullptr)
    arch.classifier_dropout = read_dropout(config, "classifier_dropout", 0);
  arch.hidden_act = read_activation(config);
  if (config.find("moe") != nullptr) arch.experts = read_mlp_experts(config.object("moe"));
  return arch;
}

std::vector<ParameterSpec> classifier_parameters(const BertArch& bert, int64_t num_labels) {
  std::vector<ParameterSpec> parameters;
  walk_bert(
      bert, num_labels,
      [&](const std::string& linear, int64_t in_features, int64_t out_features) {
        parameters.push_back({linear + ".weight", {out_features, in_features}, kNormal});
        parameters.push_back({linear + ".bias", {out_features}});
      },
      [&](const std::string& norm) {
        parameters.push_back({norm + ".weight", {bert.hidden_size}, kOnes});
        parameters.push_back({norm + ".bias", {bert.hidden_size}});
      },
      [&](const std::string& table, int64_t rows) {
        parameters.push_back({table + ".weight", {rows, bert.hidden_size}, kNormal});
      },
      [&](const std::string& path) {
        const ExpertsShape shape{bert.hidden_size, bert.intermediate_size, kNormal, {}, kNormal, {}, kNormal};
        const auto experts = mlp_expert_parameters(path, *bert.experts, shape);
        parameters.insert(parameters.end(), experts.begin(), experts.end());
      });
  return parameters;
}

std::vector<LinearSpec> classifier_linears(const BertArch& bert, int64_t num_labels) {
  std::vector<LinearSpec> linears;
  walk_bert(
      bert, num_labels,
      [&](const std::string& path, int64_t in_features, int64_t out_features) {
        linears.push_back({path, in_features, out_features});
      },
      [](const std::string&) {}, [](const std::string&, int64_t) {},
      [&](const std::string& path) {
        const auto shared = shared_expert_linears(path, *bert.experts, bert.hidden_size, bert.intermediate_size);
        linears.insert(linears.end(), shared.begin(), shared.end());
      });
  return linears;
}

// What transformers' own checkpoints of the family hold beyond a classifier's parameters: buffers of old versions, and
// the heads of pre-training.
bool is_inert(const BertArch&, const std::string& name) {
  return name == "embeddings.position_ids" || name.ends_with(".embeddings.position_ids") ||
         name.ends_with("rotary_emb.inv_freq") || name.ends_with(".masked_bias") || name.starts_with("cls.");
}

// The names that a parameter has had: without the prefix in files of the bare encoder, and LayerNorm's parameters after
// their Greek letters in files converted from TensorFlow.
std::vector<std::string> spellings(const BertArch&, const std::string& parameter) {
  std::vector<std::string> names = {parameter};
  for (const auto& [today, then] :
       {std::pair("LayerNorm.weight", "LayerNorm.gamma"), {"LayerNorm.bias", "LayerNorm.beta"}}) {
    const std::string_view ending = today;
    if (parameter.ends_with(ending)) names.push_back(parameter.substr(0, parameter.size() - ending.size()) + then);
  }
  for (size_t i = 0, n = names.size(); i < n; ++i) {
    if (names[i].starts_with(kPrefix)) names.push_back(names[i].substr(kPrefix.size()));
  }
  return names;
}

}  // namespace lathe::arch
