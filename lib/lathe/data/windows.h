#pragma once

#include <cstdint>
#include <vector>

namespace lathe::data {

/// Which samples each optimizer step sees: a function of the step alone, so that a resumed run seeks instead of
/// replaying. A window ends with its epoch; the last one of an epoch may have fewer or smaller micro-batches.
class Windows {
 public:
  /// Requires num_samples, batch_size and accumulation_steps >= 1.
  Windows(int64_t num_samples, int64_t batch_size, int64_t accumulation_steps, bool shuffle, uint64_t seed);

  /// ceil(ceil(num_samples / batch_size) / accumulation_steps)
  int64_t steps_per_epoch() const { return steps_per_epoch_; }
  /// The micro-batches of optimizer step `step`, counted from 0: indices of samples.
  std::vector<std::vector<int64_t>> window(int64_t step);
  /// Samples consumed after `steps` steps, over the number of samples.
  double epoch_after(int64_t steps) const;

 private:
  const std::vector<int64_t>& order(int64_t epoch);

  int64_t num_samples_, batch_size_, accumulation_steps_, steps_per_epoch_;
  bool shuffle_;
  uint64_t seed_;
  int64_t ordered_epoch_ = -1;
  std::vector<int64_t> order_;
};

}  // namespace lathe::data
