#pragma once

#include "lathe/nn/checkpoint.h"
#include "lathe/nn/dropout.h"

namespace lathe::nn {

/// What a forward pass is for, and where its randomness comes from: every dropout of the pass derives its own key.
struct Pass {
  bool training = false;
  uint64_t key = 0;  ///< from (seed, micro-batch); the same key draws the same masks
  LayerPolicy layers{};

  /// The dropout of one place in the model. Rate 0 outside training.
  kernels::Dropout dropout(double rate, uint64_t layer, const char* purpose) const {
    if (!training || rate == 0) return {};
    return {make_key(key, layer, name_key(purpose)), static_cast<float>(rate)};
  }
};

}  // namespace lathe::nn
