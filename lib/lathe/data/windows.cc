#include "lathe/data/windows.h"

#include <algorithm>
#include <numeric>

#include "lathe/base/random.h"

namespace lathe::data {

Windows::Windows(int64_t num_samples, int64_t batch_size, int64_t accumulation_steps, bool shuffle, uint64_t seed)
    : num_samples_(num_samples),
      batch_size_(batch_size),
      accumulation_steps_(accumulation_steps),
      shuffle_(shuffle),
      seed_(seed) {
  const int64_t micro_batches = (num_samples + batch_size - 1) / batch_size;
  steps_per_epoch_ = (micro_batches + accumulation_steps - 1) / accumulation_steps;
}

const std::vector<int64_t>& Windows::order(int64_t epoch) {
  if (ordered_epoch_ == epoch) return order_;
  ordered_epoch_ = epoch;
  if (shuffle_) {
    order_ = random_permutation(num_samples_, make_key(seed_, name_key("order"), epoch));
  } else {
    order_.resize(static_cast<size_t>(num_samples_));
    std::iota(order_.begin(), order_.end(), 0);
  }
  return order_;
}

std::vector<std::vector<int64_t>> Windows::window(int64_t step) {
  const std::vector<int64_t>& samples = order(step / steps_per_epoch_);
  int64_t at = (step % steps_per_epoch_) * batch_size_ * accumulation_steps_;
  std::vector<std::vector<int64_t>> micro_batches;
  for (int64_t i = 0; i < accumulation_steps_ && at < num_samples_; ++i) {
    const int64_t end = std::min(at + batch_size_, num_samples_);
    micro_batches.emplace_back(samples.begin() + at, samples.begin() + end);
    at = end;
  }
  return micro_batches;
}

double Windows::epoch_after(int64_t steps) const {
  const int64_t within = std::min(steps % steps_per_epoch_ * batch_size_ * accumulation_steps_, num_samples_);
  return static_cast<double>(steps / steps_per_epoch_) +
         static_cast<double>(within) / static_cast<double>(num_samples_);
}

}  // namespace lathe::data
