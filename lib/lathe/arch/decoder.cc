#include "lathe/arch/decoder.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

constexpr std::array<std::string_view, 6> kTypes = {"llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe"};
// transformers' initializer_range.
constexpr Initial kDrawn = {Initial::Kind::Normal, 0.02}, kOne = {Initial::Kind::Constant, 1};

void read_attention(const JsonObject& config, DecoderArch& arch) {
  const bool qwen3 = arch.model_type.starts_with("qwen3");
  arch.num_attention_heads = config.integer("num_attention_heads", 1, kMaxSize);
  // Only Llama's absent key means as many as heads; the other families' defaults differ.
  const std::optional<int64_t> all =
      arch.model_type == "llama" ? std::optional(arch.num_attention_heads) : std::nullopt;
  arch.num_key_value_heads = config.integer("num_key_value_heads", 1, kMaxSize, all);
  if (arch.num_attention_heads % arch.num_key_value_heads != 0) {
    throw config.error("num_key_value_heads", Diagnostic::expected("a divisor of num_attention_heads = " +
                                                                       std::to_string(arch.num_attention_heads),
                                                                   std::to_string(arch.num_key_value_heads)));
  }
  if (config.find("head_dim") != nullptr) {
    arch.head_size = config.integer("head_dim", 1, kMaxSize);
  } else if (qwen3) {
    arch.head_size = 128;
  } else if (arch.hidden_size % arch.num_attention_heads != 0) {
    throw config.error("hidden_size", Diagnostic::expected("a multiple of num_attention_heads = " +
                                                               std::to_string(arch.num_attention_heads),
                                                           std::to_string(arch.hidden_size)));
  } else {
    arch.head_size = arch.hidden_size / arch.num_attention_heads;
  }
  if (arch.head_size > kMaxSize / arch.num_attention_heads) {
    throw config.error("num_attention_heads",
                       Diagnostic::expected("heads of " + std::to_string(arch.head_size) + " that are at most " +
                                                std::to_string(kMaxSize) + " wide together",
                                            std::to_string(arch.num_attention_heads)));
  }
  const bool biases = (arch.model_type == "llama" || qwen3) && config.boolean("attention_bias", false);
  arch.qkv_bias = biases || arch.model_type == "qwen2";
  arch.output_bias = biases;
  arch.qk_norm = qwen3;
}

// The layers with experts: all, or those that Qwen's keys name.
void read_sparse_layers(const JsonObject& config, DecoderArch& arch) {
  const int64_t step = config.integer("decoder_sparse_step", 1, kMaxLayers, 1);
  arch.sparse.resize(static_cast<size_t>(arch.num_hidden_layers));
  for (size_t i = 0; i < arch.sparse.size(); ++i) arch.sparse[i] = (static_cast<int64_t>(i) + 1) % step == 0;
  const Json* dense = config.find("mlp_only_layers");
  if (dense == nullptr) return;
  if (!dense->is_array()) throw config.error("mlp_only_layers", Diagnostic::expected("a list", describe(*dense)));
  for (const Json& layer : *dense)
    arch.sparse[static_cast<size_t>(config.integer_of("mlp_only_layers", layer, 0, arch.num_hidden_layers - 1))] =
        false;
}

// The modules walked once for all lists: table(path), norm(path, width), linear(path, in, out, bias), experts(path).
template <typename Table, typename Norm, typename Linear, typename Experts>
void walk_decoder(const DecoderArch& arch, Table table, Norm norm, Linear linear, Experts experts) {
  const int64_t hidden = arch.hidden_size, query = arch.query_size(), key_value = arch.key_value_size();
  table("model.embed_tokens");
  for (int64_t i = 0; i < arch.num_hidden_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i), attention = layer + ".self_attn.";
    norm(layer + ".input_layernorm", hidden);
    linear(attention + "q_proj", hidden, query, arch.qkv_bias);
    linear(attention + "k_proj", hidden, key_value, arch.qkv_bias);
    linear(attention + "v_proj", hidden, key_value, arch.qkv_bias);
    linear(attention + "o_proj", query, hidden, arch.output_bias);
    if (arch.qk_norm) {
      norm(attention + "q_norm", arch.head_size);
      norm(attention + "k_norm", arch.head_size);
    }
    norm(layer + ".post_attention_layernorm", hidden);
    if (arch.has_experts(i)) {
      experts(layer + "." + arch.moe->block_name);
    } else {
      linear(layer + ".mlp.gate_proj", hidden, arch.intermediate_size, arch.mlp_bias);
      linear(layer + ".mlp.up_proj", hidden, arch.intermediate_size, arch.mlp_bias);
      linear(layer + ".mlp.down_proj", arch.intermediate_size, hidden, arch.mlp_bias);
    }
  }
  norm("model.norm", hidden);
}

}  // namespace

bool is_decoder(const std::string& model_type) {
  return std::find(kTypes.begin(), kTypes.end(), model_type) != kTypes.end();
}

DecoderArch read_decoder(const JsonObject& config) {
  DecoderArch arch;
  arch.model_type = config.string("model_type");
  if (!is_decoder(arch.model_type)) {
    throw config.error("model_type", quote(arch.model_type) + " is no decoder that is known",
                       "known: " + join({kTypes.begin(), kTypes.end()}, ", "));
  }
  arch.vocab_size = config.integer("vocab_size", 1, kMaxSize);
  arch.hidden_size = config.integer("hidden_size", 1, kMaxSize);
  arch.num_hidden_layers = config.integer("num_hidden_layers", 1, kMaxLayers);
  arch.intermediate_size = config.integer("intermediate_size", 1, kMaxSize);
  arch.max_position_embeddings = config.integer("max_position_embeddings", 1, kMaxSize, 4096);
  arch.tied = config.boolean("tie_word_embeddings", false);
  arch.mlp_bias = arch.model_type == "llama" && config.boolean("mlp_bias", false);
  read_attention(config, arch);
  if (is_moe(arch.model_type)) {
    arch.moe = read_moe_arch(config);
    read_sparse_layers(config, arch);
  }
  if (const std::string act = config.string("hidden_act", "silu"); act != "silu")
    throw config.error("hidden_act", quote(act) + " is not supported", "supported: silu");
  return arch;
}

std::vector<ParameterSpec> classifier_parameters(const DecoderArch& arch, int64_t /*num_labels*/) {
  std::vector<ParameterSpec> parameters;
  const auto linear = [&](const std::string& path, int64_t in_features, int64_t out_features, bool bias) {
    parameters.push_back({path + ".weight", {out_features, in_features}, kDrawn});
    if (bias) parameters.push_back({path + ".bias", {out_features}});
  };
  walk_decoder(
      arch,
      [&](const std::string& path) {
        parameters.push_back({path + ".weight", {arch.vocab_size, arch.hidden_size}, kDrawn});
      },
      [&](const std::string& path, int64_t width) {
        parameters.push_back({path + ".weight", {width}, kOne});
      },
      linear,
      [&](const std::string& path) {
        for (ParameterSpec& tensor : moe_block_tensors(*arch.moe, ExpertLayout::Fused))
          parameters.push_back({path + "." + tensor.name, tensor.shape, kDrawn});
      });
  if (!arch.tied) linear("lm_head", arch.hidden_size, arch.vocab_size, false);
  return parameters;
}

std::vector<LinearSpec> classifier_linears(const DecoderArch& arch, int64_t /*num_labels*/) {
  std::vector<LinearSpec> linears;
  walk_decoder(
      arch, [](const std::string&) {}, [](const std::string&, int64_t) {},
      [&](const std::string& path, int64_t in_features, int64_t out_features, bool) {
        linears.push_back({path, in_features, out_features});
      },
      [](const std::string&) {});
  linears.push_back({"lm_head", arch.hidden_size, arch.vocab_size});
  return linears;
}

}  // namespace lathe::arch
