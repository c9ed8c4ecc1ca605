#pragma once

#include <torch/arg.h>

#include <memory>

#include "lathe/nn/modules.h"
#include "lathe/nn/moe.h"

namespace lathe::nn {

/// Options of MixerBlock.
struct MixerBlockOptions {
  MixerBlockOptions(int64_t sequence_length, int64_t width, int64_t tokens_hidden_size, int64_t channels_hidden_size)
      : sequence_length_(sequence_length),
        width_(width),
        tokens_hidden_size_(tokens_hidden_size),
        channels_hidden_size_(channels_hidden_size) {}
  /// S, the length of the sequence; token mixing has weights of this size.
  TORCH_ARG(int64_t, sequence_length);
  /// C, the width of a token.
  TORCH_ARG(int64_t, width);
  /// D_S, the hidden width of token mixing.
  TORCH_ARG(int64_t, tokens_hidden_size);
  /// D_C, the hidden width of channel mixing.
  TORCH_ARG(int64_t, channels_hidden_size);
  /// Default: Erf, as timm and its checkpoints; the paper's own code has Tanh.
  TORCH_ARG(Gelu, gelu) = Gelu::Erf;
  /// Of both norms, above 0. Default: 1e-6
  TORCH_ARG(double, eps) = 1e-6;
};

/// `mlp_tokens`, `mlp_channels`: the two layers of an MLP, in slots.
class MixerMlp : public SlottedModule {
 public:
  MixerMlp(int64_t features, int64_t hidden_features);
  LinearSlot fc1, fc2;
};

/// Token mixing, then channel mixing, each after a norm and beside a residual:
///     u = x + W₂ gelu(W₁ norm₁(x) + b₁) + b₂     over the S tokens, for each channel
///     y = u + gelu(norm₂(u) W₃ᵀ + b₃) W₄ᵀ + b₄   over the C channels, for each token
/// Source: Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP architecture for vision", eq. 1 (arXiv:2105.01601).
///
/// State   norm1, norm2: weight, bias [C]
///         mlp_tokens.fc1 [D_S, S], .fc2 [S, D_S]; mlp_channels.fc1 [D_C, C], .fc2 [C, D_C]; all with bias.
///         Hollow until loaded or reset_parameters(). With experts, `moe` stands for mlp_channels.
/// Shape   x [B, S, C] -> [B, S, C]
/// Throws  c10::ValueError  on construction unless all sizes >= 1 and eps > 0
///                          in forward() unless x is [B, S, C]
class MixerBlockImpl : public torch::nn::Module {
 public:
  /// `experts`, where given, mix the channels; they are the caller's to initialise.
  explicit MixerBlockImpl(MixerBlockOptions options, std::shared_ptr<MoELayerImpl> experts = nullptr);

  /// Glorot's uniform weights, biases N(0, 1e-12), as timm draws them, from torch's generator.
  void reset_parameters();
  /// `pass` and `layer` are for the experts.
  Tensor forward(const Tensor& x, const Pass& pass = {}, uint64_t layer = 0);
  void pretty_print(std::ostream& stream) const override;

  MixerBlockOptions options;
  LayerNorm norm1{nullptr}, norm2{nullptr};
  std::shared_ptr<MixerMlp> mlp_tokens, mlp_channels;  ///< the latter null with experts
  std::shared_ptr<MoELayerImpl> moe;
};
TORCH_MODULE(MixerBlock);

}  // namespace lathe::nn
