#pragma once

#include <ATen/core/TensorBody.h>

#include "lathe/base/random.h"
#include "lathe/nn/kernels.h"

namespace lathe::nn {

using at::Tensor;

/// Where the dropouts of modules that see no Pass take their keys on this thread (LoRALinear's): a key and a count of
/// draws. A training step opens one per micro-batch, so that the same step draws the same masks; without one, draws
/// follow each other for the life of the thread. checkpoint() replays it.
class DropoutStream {
 public:
  struct State {
    uint64_t key = 0;
    uint64_t count = 0;
  };

  explicit DropoutStream(uint64_t key);
  ~DropoutStream();
  DropoutStream(const DropoutStream&) = delete;
  DropoutStream& operator=(const DropoutStream&) = delete;

  static uint64_t next_key();
  static State state();
  static void set_state(State state);

 private:
  State outer_;
};

/// y = x masked and scaled by 1 / (1 - p). The mask is a function of the key and the element's place: backward draws it
/// again. Source: Srivastava et al. 2014, "Dropout"; masks from counters: Salmon et al. 2011, "Parallel random numbers:
/// as easy as 1, 2, 3".
Tensor dropout(const Tensor& x, kernels::Dropout dropout);

/// The factors themselves, 0 or 1 / (1 - p), for elements first_index onwards: what a composed operator multiplies
/// with.
Tensor dropout_factors(at::IntArrayRef shape, kernels::Dropout dropout, int64_t first_index,
                       const at::TensorOptions& options);

/// Whether the fused float32 kernels apply: a float32 CPU tensor.
bool uses_kernels(const Tensor& x);

}  // namespace lathe::nn
