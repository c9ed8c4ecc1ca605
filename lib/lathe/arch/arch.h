#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "lathe/arch/bert.h"
#include "lathe/arch/decoder.h"
#include "lathe/arch/mixer.h"
#include "lathe/arch/spec.h"
#include "lathe/base/json.h"

namespace lathe::arch {

/// The shape of a model; one alternative per family.
using Arch = std::variant<BertArch, MixerArch, DecoderArch>;

/// Which families a reader accepts: those that modules are built of, or also those that only a plan knows (decoders).
enum class Families { Built, Planned };

/// What config.json says: the shape, and the labels of a classifier if it was saved as one.
struct ModelConfig {
  Arch arch;
  std::string model_type;           ///< "bert", "mixer", "llama", ...
  std::vector<std::string> labels;  ///< in order; empty when the checkpoint is no classifier or does not name them
  std::optional<ImageInput> image;  ///< of an image model
  Json json;                        ///< as it was read: what a saved model's config.json starts from
};

/// Reads and checks a config.json of transformers, or of timm. A field that changes the computation is read or refused;
/// others are ignored. Throws Error{Data} naming the file and the key.
ModelConfig read_model_config(const std::string& path, Families families = Families::Built);

/// The same from a recipe's mapping: {model_type: bert, ...} as in a config.json, {model_type: mixer, ...} as
/// read_mixer() says.
ModelConfig read_arch_mapping(const JsonObject& mapping, Families families = Families::Built);

/// Whether the model sees pixels, not tokens.
bool sees_images(const Arch& arch);
/// Whether it predicts the next token: a decoder.
bool is_causal(const Arch& arch);

/// Every dropout of `arch` set to `rate`. False when the family has none.
bool override_dropout(Arch& arch, double rate);

/// What stands for the MLPs of an encoder or a Mixer; none: the MLPs. A decoder's own experts are in DecoderArch::moe.
const std::optional<MlpExperts>& mlp_experts(const Arch& arch);
/// Where they are set. Not for a decoder.
std::optional<MlpExperts>& mlp_experts(Arch& arch);

/// The layers of the stack that activation checkpointing splits.
int64_t num_layers(const Arch& arch);

/// Of a text model.
int64_t max_positions(const Arch& arch);
int64_t vocab_size(const Arch& arch);

/// The parameters of the family's classifier in the order and spelling of transformers or timm.
std::vector<ParameterSpec> classifier_parameters(const Arch& arch, int64_t num_labels);
/// Its linear layers, likewise.
std::vector<LinearSpec> classifier_linears(const Arch& arch, int64_t num_labels);
/// What adapters may target beside them: the matrices of the experts as linear layers, one by one
/// (`experts.3.up_proj`), and the tensors that hold those of all experts (`experts.up_proj`).
std::vector<LinearSpec> expert_linears(const Arch& arch);
std::vector<LinearSpec> expert_parameters(const Arch& arch);
/// The module that gives the logits: "classifier", "head", "lm_head".
std::string head_module(const Arch& arch);
/// The modules that a classification adapter always trains and saves whole, and that all-linear leaves out.
std::vector<std::string> head_modules(const Arch& arch);
/// The usual targets of adapters: PEFT's default where it has one for the family.
std::vector<std::string> default_target_modules(const Arch& arch);

}  // namespace lathe::arch
