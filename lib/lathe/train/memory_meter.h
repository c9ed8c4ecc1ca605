#pragma once

#include <torch/nn/module.h>

#include <cstdint>

namespace lathe::train {

/// Counts the bytes that live in LibTorch's CPU allocator, from install() on: tensors made before are not counted. One
/// for the process; an atomic addition per allocation.
class MemoryMeter {
 public:
  static void install();
  static int64_t live_bytes();
  /// The most since the last reset_peak().
  static int64_t peak_bytes();
  static void reset_peak();
};

/// Of the parameters and buffers that are views of a mapped file: LibTorch's allocator did not make them.
int64_t mapped_bytes(const torch::nn::Module& model);

}  // namespace lathe::train
