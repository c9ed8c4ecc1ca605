#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/arch/moe.h"
#include "lathe/arch/spec.h"
#include "lathe/base/json.h"

namespace lathe::arch {

/// A decoder of the usual shape: Llama, Mistral, Qwen2, Qwen3, Mixtral, Qwen3-MoE. Attention over grouped keys with
/// rotary positions, RMSNorm before each half, SwiGLU MLPs or experts. The fields of transformers' configs that decide
/// its size: what a plan needs.
struct DecoderArch {
  std::string model_type;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  ///< of the layers without experts
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_size = 0;
  int64_t max_position_embeddings = 0;
  bool tied = false;  ///< the head is the table of the embeddings
  bool qkv_bias = false, output_bias = false, mlp_bias = false;
  bool qk_norm = false;        ///< RMSNorm of each head's query and key
  std::optional<MoEArch> moe;  ///< of the layers that have experts
  std::vector<bool> sparse{};  ///< for each layer, whether it is one of them

  bool has_experts(int64_t layer) const { return moe && sparse[static_cast<size_t>(layer)]; }
  int64_t query_size() const { return num_attention_heads * head_size; }
  int64_t key_value_size() const { return num_key_value_heads * head_size; }
};

bool is_decoder(const std::string& model_type);

/// Throws Error{Data} naming the file and the key.
DecoderArch read_decoder(const JsonObject& config);

/// As lathe/arch/arch.h says, for this family: a causal language model chooses among its vocabulary, whatever
/// `num_labels` is. Experts are fused, as in transformers' modules; a tied head has no parameter of its own.
std::vector<ParameterSpec> classifier_parameters(const DecoderArch& arch, int64_t num_labels);
std::vector<LinearSpec> classifier_linears(const DecoderArch& arch, int64_t num_labels);

}  // namespace lathe::arch
