#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/arch/mlp_experts.h"
#include "lathe/arch/spec.h"
#include "lathe/base/json.h"

namespace lathe::arch {

/// An MLP-Mixer over the patches of an image. Sizes are checked when read.
/// Source: Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP architecture for vision" (arXiv:2105.01601).
struct MixerArch {
  int64_t image_height = 224;  ///< a multiple of patch_size, as is the width
  int64_t image_width = 224;
  int64_t num_channels = 3;
  int64_t patch_size = 16;
  int64_t num_blocks = 0;
  int64_t hidden_size = 0;           ///< C, width of a patch's vector
  int64_t tokens_hidden_size = 0;    ///< D_S, hidden width of token mixing
  int64_t channels_hidden_size = 0;  ///< D_C, hidden width of channel mixing
  double layer_norm_eps = 1e-6;
  Activation hidden_act = Activation::Gelu;
  std::optional<MlpExperts> experts{};  ///< in place of each block's channel mixing; Lathe's own

  /// S, the length of the sequence.
  int64_t num_patches() const { return image_height / patch_size * (image_width / patch_size); }
};

/// What a checkpoint says of the pixels that its model expects: (value / 255 - mean) / std per channel.
struct ImageInput {
  std::vector<double> mean, std;
  std::string interpolation = "bicubic";
  double crop_pct = 1;  ///< in evaluation: the share of the resized image's shorter side that is kept
};

/// timm's config.json: `architecture` (a released size, mixer_s32_224 to mixer_h14_224), which `model_args` override;
/// beside them Lathe's own `hidden_act`, `layer_norm_eps` and `moe`, which timm ignores.
/// Throws Error{Data} naming the file and the key.
MixerArch read_timm_mixer(const JsonObject& config);
/// A recipe's mapping: `architecture`, or all of image_size, patch_size, num_blocks, hidden_size; overridden by these
/// and num_channels (3), tokens_hidden_size (half of hidden_size), channels_hidden_size (4 times), layer_norm_eps,
/// hidden_act.
MixerArch read_mixer(const JsonObject& config);
/// `pretrained_cfg` of timm's config.json; absent: as the released models have it.
ImageInput read_image_input(const JsonObject& config, const MixerArch& arch);

/// A config.json that Lathe reads, and timm where a released model has the patches, blocks and width.
Json timm_config(const MixerArch& arch, const ImageInput& input, const std::vector<std::string>& labels);

/// As lathe/arch/arch.h says, for this family. Names are timm's.
std::vector<ParameterSpec> classifier_parameters(const MixerArch& arch, int64_t num_labels);
std::vector<LinearSpec> classifier_linears(const MixerArch& arch, int64_t num_labels);

}  // namespace lathe::arch
