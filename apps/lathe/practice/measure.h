#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

/// What a run of the practice exam is measured by.
namespace lathe::app::practice {

using at::Tensor;

/// The operations of the matrix products that `run` executes, forward and backward, as LibTorch's operators and Lathe's
/// kernels report them by their shapes: what `lathe train --profile` counts.
int64_t counted_flops(const std::function<void()>& run);

/// The elements that LibTorch's operators made in `run` on this thread, by the operator's name: "aten::add".
std::map<std::string, double> counted_elements(const std::function<void()>& run);

/// Bytes in LibTorch's CPU allocator, as they were asked for, from the construction on.
class ByteMeter {
 public:
  ByteMeter();
  /// Allocated since, less freed since.
  int64_t live() const;
  /// The most that live() has been. One meter at a time measures it.
  int64_t peak() const;
  /// The sizes of the blocks that were allocated since and live, ascending.
  std::vector<int64_t> blocks() const;

 private:
  int64_t live_before_ = 0, first_block_ = 0;
};

/// The median wall time of some runs.
double seconds_of(const std::function<void()>& run, int num_runs = 3);

/// N(0, 1) from a counter: a function of shape and name.
Tensor drawn(at::IntArrayRef shape, const char* name, at::ScalarType dtype = at::kFloat);

/// Whether both hold the same bits.
bool same_bits(const Tensor& a, const Tensor& b);
/// |a - b| / |b|, Euclidean.
double relative_difference(const Tensor& a, const Tensor& b);

}  // namespace lathe::app::practice
