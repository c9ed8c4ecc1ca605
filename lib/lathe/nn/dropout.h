#pragma once

#include <ATen/core/TensorBody.h>

#include "lathe/base/random.h"
#include "lathe/nn/kernels.h"

namespace lathe::nn {

using at::Tensor;

/// What a forward pass is for, and where its randomness comes from: every dropout of the pass derives its own key.
struct Pass {
  bool training = false;
  uint64_t key = 0;  ///< from (seed, micro-batch); the same key draws the same masks

  /// The dropout of one place in the model. Rate 0 outside training.
  kernels::Dropout dropout(double rate, uint64_t layer, const char* purpose) const {
    if (!training || rate == 0) return {};
    return {make_key(key, layer, name_key(purpose)), static_cast<float>(rate)};
  }
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
