#pragma once

#include <string>

#include "lathe/arch/checkpoint.h"
#include "lathe/io/tensors.h"
#include "temporary_directory.h"
#include "tensor_expect.h"

namespace lathe::testing {

inline constexpr const char* kSmallBertConfig =
    R"({"model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3,
  "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32, "type_vocab_size": 2, "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1})";

/// Writes a small BERT checkpoint (weights are ramps; no head) with a WordPiece tokenizer of letters; returns its
/// directory.
inline std::string write_small_bert(const TemporaryDirectory& directory, const std::string& name = "model") {
  const std::string config = directory.write(name + "/config.json", kSmallBertConfig);
  const arch::Arch arch = arch::read_model_config(config).arch;
  io::NamedTensors tensors;
  double phase = 0;
  for (const auto& parameter : arch::classifier_parameters(arch, 2)) {
    if (parameter.name.starts_with("classifier")) continue;
    const bool norm = parameter.name.ends_with("LayerNorm.weight");
    tensors.emplace_back(parameter.name, ramp(parameter.shape, 0.37, phase += 0.1) * 0.2 + (norm ? 1 : 0));
  }
  const std::string folder = (directory / name).string();
  io::write_safetensors(folder + "/model.safetensors", tensors);
  std::string vocab = R"("[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3)";
  for (int i = 0; i < 26; ++i)
    vocab += std::string(", \"") + static_cast<char>('a' + i) + "\": " + std::to_string(4 + i);
  directory.write(
      name + "/tokenizer.json",
      R"({"added_tokens": [], "normalizer": {"type": "BertNormalizer"}, "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}}],
    "special_tokens": {"[CLS]": {"ids": [2]}, "[SEP]": {"ids": [3]}}}, "decoder": {"type": "WordPiece"}, "model": {"type": "WordPiece", "vocab": {)" +
          vocab + "}}}");
  return folder;
}

}  // namespace lathe::testing
