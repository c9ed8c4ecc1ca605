#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>

namespace lathe::nn {

using at::Tensor;

/// Tensors from counters (base/random.h): an element is a function of the key and its place. float64.
Tensor counter_uniform(at::IntArrayRef shape, uint64_t key);  ///< in [0, 1)
Tensor counter_normal(at::IntArrayRef shape, uint64_t key);   ///< N(0, 1), by Box-Muller

}  // namespace lathe::nn
