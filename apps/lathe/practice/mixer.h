#pragma once

#include <string>
#include <utility>
#include <vector>

#include "lathe/cost/closed_forms.h"
#include "lathe/cost/ops.h"
#include "lathe/nn/mixer.h"
#include "practice/measure.h"
#include "practice/working.h"

/// The MLP-Mixer that the exam's questions on scale and memory are about.
namespace lathe::app::practice {

using cost::Amount;

inline constexpr cost::MixerSizes kExamMixer{
    .sequence_length = 128, .width = 1024, .tokens_hidden_size = 512, .channels_hidden_size = 4096, .num_blocks = 24};
inline constexpr double kExamBatch = 1024;

/// A block with weights from counters, which differ with `name`.
nn::MixerBlock make_block(const cost::MixerSizes& sizes, const std::string& name, at::ScalarType dtype = at::kFloat);

/// The same block as the paper writes it, by LibTorch's own operators.
enum class PlainActivation { Gelu, Relu };
/// `seen` is given the output of every operation.
Tensor plain_block(
    const Tensor& x_BSC, nn::MixerBlockImpl& block, PlainActivation activation = PlainActivation::Gelu,
    const std::function<void(const Tensor&)>& seen = [](const Tensor&) {});

/// A stack of blocks, the mean over the patches, and a head without bias: a classifier of seconds.
struct SmallMixer {
  explicit SmallMixer(const cost::MixerSizes& sizes, const std::string& name, at::ScalarType dtype = at::kFloat);

  Tensor blocks_forward(const Tensor& x_BSC, const nn::LayerPolicy& policy = {}) const;
  /// [B, kClasses]
  Tensor forward(const Tensor& x_BSC, const nn::LayerPolicy& policy = {}) const;
  /// All of them train.
  std::vector<std::pair<std::string, Tensor>> parameters() const;

  static constexpr int64_t kClasses = 8;
  std::vector<nn::MixerBlock> blocks;
  Tensor head;
};

/// Bytes of a step through the blocks alone, beside its input and the gradient of its output, which are given.
struct BlocksMemory {
  Amount kept = 0;       ///< after a micro-batch's forward pass
  Amount peak = 0;       ///< at most
  Amount gradients = 0;  ///< at the end
  // Of the planned peak:
  Amount peak_gradients = 0, peak_passing = 0;
  Amount peak_kept() const { return peak - peak_gradients - peak_passing; }
};
/// Boundaries every n layers; 0: nothing is computed again.
nn::LayerPolicy policy_of(int64_t layers_per_segment);
/// Counted.
BlocksMemory measured_memory(const SmallMixer& model, const Tensor& x_BSC, int64_t micro_batch,
                             int64_t layers_per_segment = 0);
/// As the planner follows the same step.
BlocksMemory planned_memory(const cost::MixerSizes& sizes, int64_t batch, int64_t micro_batch,
                            const recipe::Checkpointing& policy = {});
recipe::Checkpointing planned_policy_of(int64_t layers_per_segment);
/// The derivation step of that peak, by its parts.
Amount derive_peak(Working& working, const std::string& text, const BlocksMemory& planned);
/// What checkpoints at every n layers of the exam's Mixer leave, as the planner counts it, in the terms of the formula
/// (L / n) A_b + n A_l, A_l = 20 A_b: with the input, without LayerNorm's statistics and the generator's states.
Amount planned_exam_checkpoints(int64_t layers_per_segment);
/// What each checkpoint keeps beside its input: the state of LibTorch's random generator.
Amount generator_bytes();

/// The gradients of these parameters, as copies; zeros for a parameter without one.
std::vector<Tensor> gradients_of(const std::vector<std::pair<std::string, Tensor>>& parameters);
void forget_gradients(const std::vector<std::pair<std::string, Tensor>>& parameters);
/// What equal gradients in float64 may differ by: their sums of hundreds of terms are rounded in other orders.
inline constexpr double kApart = 1e-12;
/// The largest relative_difference() over pairs of tensors.
double largest_difference(const std::vector<Tensor>& a, const std::vector<Tensor>& b);

/// The block as the planner sees it, and its input: one that needs a gradient.
cost::MixerBlockCost planned_block(const cost::MixerSizes& sizes, const std::string& path);
cost::Value planned_input(cost::Ledger& ledger, const cost::MixerSizes& sizes, double num_samples);

}  // namespace lathe::app::practice
