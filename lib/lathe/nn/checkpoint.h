#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

namespace lathe::nn {

using at::Tensor;

/// What a region of the forward pass keeps for the backward pass.
enum class Recompute {
  None,         ///< what each operator saves
  Elementwise,  ///< the outputs of products; activations and norms are computed again from them
  Full,         ///< the region's inputs; the whole region is computed again
};

/// A region of the forward pass whose saved tensors are under a policy: what checkpoint() opens around its function.
class CheckpointRegion {
 public:
  using Rerun = std::function<void(const std::vector<Tensor>&)>;
  CheckpointRegion(Recompute policy, const std::vector<Tensor>& inputs, Rerun rerun);
  CheckpointRegion(const CheckpointRegion&) = delete;
  CheckpointRegion& operator=(const CheckpointRegion&) = delete;

 private:
  std::shared_ptr<void> scope_;
};

/// y = fn(inputs), keeping for the backward pass only what `policy` says. Gradients equal those of fn(inputs) to the
/// bit, dropout and the default generator's draws replayed. No nested backward pass: inputs need not require a gradient
/// (captured parameters get theirs), regions nest, and double backward works. Recomputation stops at the last tensor
/// that is needed and frees each as it is used.
///
/// `fn` takes const std::vector<Tensor>& and may return anything. It must be repeatable: called again on the same
/// inputs it saves tensors of the same shapes and types in the same order. It owns what it captures. Source: Chen et
/// al. 2016, "Training deep nets with sublinear memory cost" (arXiv:1604.06174). Throws  c10::Error  in the backward
/// pass when the recomputation saved other tensors than the forward pass did
template <typename F>
auto checkpoint(F fn, const std::vector<Tensor>& inputs, Recompute policy = Recompute::Full) {
  const CheckpointRegion region(policy, inputs, [fn](const std::vector<Tensor>& again) mutable { (void)fn(again); });
  return fn(inputs);
}

/// Whether the calling code runs for a second time, inside a recomputation: what counts (loads, statistics) is counted
/// in the first run only.
bool recomputing();

/// f(), computed in the first run of a checkpointed region and read again in its recomputation: for decisions that must
/// not fall differently, such as a router's choice. Kept without gradient until the region is gone. Outside of regions:
/// f().
Tensor decide_once(const std::function<Tensor()>& f);

/// How the layers of a stack keep what they need for the backward pass.
struct LayerPolicy {
  Recompute recompute = Recompute::None;
  int64_t layers_per_segment = 1;                                ///< Full: layers that are computed again together
  int64_t num_recomputed = std::numeric_limits<int64_t>::max();  ///< Full: the first layers, others keep everything
};

/// x -> layer(num_layers - 1, ... layer(0, x)) under `policy`. The last segment is never computed again: the backward
/// pass would need all of it at once.
Tensor run_layers(const Tensor& x, int64_t num_layers, const LayerPolicy& policy,
                  const std::function<Tensor(int64_t, const Tensor&)>& layer);

/// Whether the innermost region is of policy Elementwise: operators then keep what their gradients can be had from.
bool keeps_products_only();

/// Inside such a region: whoever saves `y`, a contiguous tensor, keeps `again` in its place, which computes the same
/// bits.
void recompute_on_demand(const Tensor& y, std::function<Tensor()> again);

}  // namespace lathe::nn
