#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace lathe::arch {

enum class Activation { Gelu, GeluTanh };

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
};

/// The shape of a model; one alternative per family.
using Arch = std::variant<BertArch>;

/// What config.json says: the shape, and the labels of a classifier if it was saved as one.
struct ModelConfig {
  Arch arch;
  std::string model_type;
  std::vector<std::string> labels;  ///< id2label in order; empty when the checkpoint is no classifier
};

/// Reads and checks a config.json. A field that changes the computation is read or refused; others are ignored.
/// Throws Error{Data} naming the file and the key.
ModelConfig read_model_config(const std::string& path);

/// Every dropout of `arch` set to `rate`.
void override_dropout(Arch& arch, double rate);

int64_t max_positions(const Arch& arch);
int64_t vocab_size(const Arch& arch);

struct ParameterSpec {
  std::string name;
  std::vector<int64_t> shape;
};

struct LinearSpec {
  std::string path;
  int64_t in_features;
  int64_t out_features;
};

/// The parameters of the family's classifier in transformers' order and spelling.
std::vector<ParameterSpec> classifier_parameters(const Arch& arch, int64_t num_labels);
/// Its linear layers, likewise.
std::vector<LinearSpec> classifier_linears(const Arch& arch, int64_t num_labels);
/// The modules that a classification adapter always trains and saves whole.
std::vector<std::string> head_modules(const Arch& arch);
/// PEFT's default targets for the family.
std::vector<std::string> default_target_modules(const Arch& arch);

}  // namespace lathe::arch
