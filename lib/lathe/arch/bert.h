#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/arch/mlp_experts.h"
#include "lathe/arch/spec.h"
#include "lathe/base/json.h"

namespace lathe::arch {

/// A BERT encoder: the fields of transformers' BertConfig that change the computation. Sizes are checked when read.
struct BertArch {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t intermediate_size = 0;
  int64_t max_position_embeddings = 0;
  int64_t type_vocab_size = 0;
  int64_t pad_token_id = 0;
  double layer_norm_eps = 1e-12;
  double hidden_dropout = 0.1;
  double attention_dropout = 0.1;
  std::optional<double> classifier_dropout;  ///< none: hidden_dropout
  Activation hidden_act = Activation::Gelu;
  std::optional<MlpExperts> experts;  ///< in place of each layer's MLP; Lathe's own
};

/// Throws Error{Data} naming the file and the key.
BertArch read_bert(const JsonObject& config);

/// As lathe/arch/arch.h says, for this family.
std::vector<ParameterSpec> classifier_parameters(const BertArch& arch, int64_t num_labels);
std::vector<LinearSpec> classifier_linears(const BertArch& arch, int64_t num_labels);
/// The names that a parameter has had in checkpoints, today's first.
std::vector<std::string> spellings(const BertArch& arch, const std::string& parameter);
/// Whether checkpoints hold such a tensor beyond a classifier's parameters.
bool is_inert(const BertArch& arch, const std::string& tensor);

}  // namespace lathe::arch
