#include "lathe/models/mixer.h"

#include <string>
#include <utility>

#include "lathe/models/mlp_experts.h"
#include "lathe/nn/watch.h"

namespace lathe::models {
namespace {

nn::MixerBlockOptions block_options(const arch::MixerArch& arch) {
  return nn::MixerBlockOptions(arch.num_patches(), arch.hidden_size, arch.tokens_hidden_size, arch.channels_hidden_size)
      .gelu(arch.hidden_act == arch::Activation::Gelu ? nn::Gelu::Erf : nn::Gelu::Tanh)
      .eps(arch.layer_norm_eps);
}

nn::MixerBlock build_block(const arch::MixerArch& arch) {
  if (!arch.experts) return nn::MixerBlock(block_options(arch));
  return nn::MixerBlock(
      block_options(arch),
      build_mlp_experts(*arch.experts, arch.hidden_size, arch.channels_hidden_size, arch.hidden_act).ptr());
}

}  // namespace

PatchProjection::PatchProjection(const arch::MixerArch& arch) : torch::nn::Module("PatchProjection") {
  weight =
      register_parameter("weight", nn::hollow({arch.hidden_size, arch.num_channels, arch.patch_size, arch.patch_size}));
  bias = register_parameter("bias", nn::hollow({arch.hidden_size}));
}

Tensor PatchProjection::forward(const Tensor& pixels) const {
  const int64_t N = pixels.size(0), channels = pixels.size(1), P = weight.size(2);
  const int64_t rows = pixels.size(2) / P, columns = pixels.size(3) / P;
  // A convolution whose stride is its kernel is a product with each patch laid out as a row.
  const Tensor patches = pixels.view({N, channels, rows, P, columns, P}).permute({0, 2, 4, 1, 3, 5});
  nn::Linear linear(channels * P * P, weight.size(0), /*bias=*/false);
  linear->weight = weight.flatten(1);  // the gradient goes through it
  return linear->product(patches.reshape({N, rows * columns, channels * P * P})).add_(bias);
}

Mixer::Mixer(const arch::MixerArch& arch, int64_t num_labels)
    : ImageClassifier("Mixer"), arch_(arch), head_([&] {
        auto stem = register_module("stem", std::make_shared<torch::nn::Module>("PatchEmbed"));
        stem_ = stem->register_module("proj", std::make_shared<PatchProjection>(arch));
        auto blocks = register_module("blocks", std::make_shared<torch::nn::Module>("MixerBlocks"));
        for (int64_t i = 0; i < arch.num_blocks; ++i)
          blocks_.push_back(blocks->register_module(std::to_string(i), build_block(arch)));
        norm_ = register_module("norm", nn::LayerNorm(arch.hidden_size, arch.layer_norm_eps));
        return register_linear("head", nn::Linear(arch.hidden_size, num_labels).ptr());
      }()) {}

Tensor Mixer::forward(const Tensor& pixels, const nn::Pass& pass) {
  TORCH_CHECK_VALUE(pixels.dim() == 4 && pixels.size(1) == arch_.num_channels && pixels.size(2) == arch_.image_height &&
                        pixels.size(3) == arch_.image_width,
                    "Mixer: expected pixels [N, ", arch_.num_channels, ", ", arch_.image_height, ", ",
                    arch_.image_width, "], got ", pixels.sizes());
  const auto block = [this, pass](int64_t i, const Tensor& x) {
    return nn::watched("blocks", i, blocks_[static_cast<size_t>(i)]->forward(x, pass, static_cast<uint64_t>(i)));
  };
  const Tensor mixed =
      nn::run_layers(nn::watched("stem", stem_->forward(pixels)), arch_.num_blocks, pass.layers, block);
  return nn::watched("head", head_(norm_->forward(mixed).mean(1)));
}

}  // namespace lathe::models
