#pragma once

#include <cstdint>

namespace lathe::optim {

enum class ScheduleType { Constant, Linear, Cosine, InverseSqrt, Wsd };

/// The learning rate as a factor of its peak, as transformers' schedules compute it.
struct Schedule {
  ScheduleType type = ScheduleType::Constant;
  int64_t num_warmup_steps = 0;  ///< the factor rises linearly over these steps
  int64_t num_steps = 1;         ///< of the whole run; linear, cosine and wsd reach their end there
  double min_ratio = 0;          ///< cosine, wsd: the factor at the end (wsd: also at the start)
  int64_t num_decay_steps = 0;   ///< wsd: the last steps, those of decay

  /// The factor for optimizer step `step`, counted from 0, with w = num_warmup_steps and n = num_steps:
  ///     warm-up       step / w
  ///     linear        (n - step) / (n - w)
  ///     cosine        min_ratio + (1 - min_ratio) (1 + cos(π (step - w) / (n - w))) / 2
  ///     inverse_sqrt  √(t / (step - w + t)),  t = w, or 10,000 without warm-up
  ///     wsd           1, then over the decay steps as cosine; its warm-up starts at min_ratio
  double factor(int64_t step) const;
};

}  // namespace lathe::optim
