#pragma once

#include <string>
#include <vector>

#include "lathe/cost/ledger.h"

/// Costs in closed form, as they are worked out on paper; the practice exam derives with them. The ledger follows the
/// same modules operator by operator, and tests/cost/closed_forms_test.cc holds the two against each other.
/// A multiply-add counts 2.
namespace lathe::cost {

/// The blocks of an MLP-Mixer, without stem and head.
struct MixerSizes {
  Amount sequence_length = 0;       ///< S, patches
  Amount width = 0;                 ///< C, channels
  Amount tokens_hidden_size = 0;    ///< D_S
  Amount channels_hidden_size = 0;  ///< D_C
  Amount num_blocks = 1;            ///< L

  /// S C: what passes between two blocks, in elements per sample.
  Amount unit() const { return sequence_length * width; }
};

/// Of one sample in one block, forward: the products along the patches, 4 S C D_S, and along the channels, 4 S C D_C.
Amount token_mixing_flops(const MixerSizes& sizes);
Amount channel_mixing_flops(const MixerSizes& sizes);
Amount mixer_block_flops(const MixerSizes& sizes);

/// What an element of GELU and of LayerNorm is held to cost; a bias or a residual costs 1.
struct ElementwiseConvention {
  Amount gelu = 1, layer_norm = 5;
};
/// Of one sample in one block, forward: everything but the products.
Amount elementwise_flops(const MixerSizes& sizes, ElementwiseConvention convention);

/// Of one block: the four matrices, and all that trains.
Amount mixer_block_weights(const MixerSizes& sizes);
Amount mixer_block_parameters(const MixerSizes& sizes);

/// A tensor of a Mixer block's forward pass, as LibTorch's plain operators make it.
struct Intermediate {
  enum class Part { Stream, Statistics, Norm, Hidden, Gelu };

  std::string name;
  Amount elements = 0;  ///< per sample
  Part part = Part::Stream;
  bool output = true;      ///< of an operation of this block; the block's input is another's
  std::string saved_by{};  ///< who needs it in the backward pass; empty: nobody
};
/// In the order of the forward pass.
std::vector<Intermediate> mixer_block_intermediates(const MixerSizes& sizes);

/// Which of the intermediates count as kept until the backward pass.
enum class Accounting {
  Textbook,            ///< every operation's output
  Hidden,              ///< the hidden tensors of the MLPs, before and after GELU
  Autograd,            ///< what the operators save
  WithoutGelu,         ///< the same, GELU computed again
  WithoutGeluAndNorm,  ///< the same, GELU and LayerNorm computed again
};
/// Elements per sample in one block.
Amount mixer_block_kept(const MixerSizes& sizes, Accounting accounting);

/// What checkpoints after every `per_segment` of `num_layers` layers leave in memory: the boundaries, and the stash of
/// the one segment that is computed again: (L / n) boundary + n stash.
Amount checkpointed(Amount num_layers, Amount per_segment, Amount boundary, Amount stash);

/// Self-attention of one sample, forward: the four projections, 8 S C², and scores and weighted values, 4 S² C.
Amount attention_projection_flops(Amount sequence_length, Amount width);
Amount attention_score_flops(Amount sequence_length, Amount width);

/// One token through a linear layer in a training step.
struct TokenFlops {
  Amount forward = 0;          ///< x Wᵀ
  Amount input_gradient = 0;   ///< g W; 0 where nothing before the layer trains
  Amount weight_gradient = 0;  ///< gᵀ x; 0 where W is frozen
  Amount adapter = 0;          ///< the low-rank products, forward and backward

  Amount total() const { return forward + input_gradient + weight_gradient + adapter; }
};
TokenFlops full_finetuning_flops(Amount in_features, Amount out_features, bool input_gradient = true);
TokenFlops lora_finetuning_flops(Amount in_features, Amount out_features, Amount rank, bool input_gradient = true);
/// A and B; and what they add to one token's forward pass while they are not merged.
Amount lora_parameters(Amount in_features, Amount out_features, Amount rank);
Amount lora_forward_flops(Amount in_features, Amount out_features, Amount rank);

/// A layer of SwiGLU experts behind a linear router.
struct ExpertSizes {
  Amount width = 0, hidden_size = 0, num_experts = 0, top_k = 0;
};
/// Parameters that there are, and those that one token meets.
Amount expert_layer_parameters(const ExpertSizes& sizes);
Amount active_expert_parameters(const ExpertSizes& sizes);
/// Of one token, forward.
Amount router_flops(const ExpertSizes& sizes);
Amount chosen_experts_flops(const ExpertSizes& sizes);

}  // namespace lathe::cost
