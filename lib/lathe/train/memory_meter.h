#pragma once

#include <torch/nn/module.h>

#include <cstdint>

namespace lathe::train {

/// LibTorch's CPU allocator from install() on, which counts the bytes that live in it: tensors made before are not
/// counted. One for the process; an atomic addition per allocation. Its heap stays close to what lives in it.
class MemoryMeter {
 public:
  static void install();
  static int64_t live_bytes();
  /// The most since the last reset_peak().
  static int64_t peak_bytes();
  static void reset_peak();
  /// Gives the memory of freed tensors back to the system.
  static void trim();
};

/// Of the parameters and buffers that are views of a mapped file: LibTorch's allocator did not make them.
int64_t mapped_bytes(const torch::nn::Module& model);

}  // namespace lathe::train
