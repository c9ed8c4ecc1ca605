#pragma once

#include <cstdint>

namespace lathe::optim {

enum class ScheduleType { Constant, Linear, Cosine };

/// The learning rate as a factor of its peak, as transformers' schedules compute it.
struct Schedule {
  ScheduleType type = ScheduleType::Constant;
  int64_t num_warmup_steps = 0;  ///< the factor rises linearly from 0 over these steps
  int64_t num_steps = 1;         ///< of the whole run; linear and cosine reach their end there
  double min_ratio = 0;          ///< cosine: the factor at the end

  /// The factor for optimizer step `step`, counted from 0:
  ///     warm-up   step / num_warmup_steps
  ///     linear    (num_steps - step) / (num_steps - num_warmup_steps)
  ///     cosine    min_ratio + (1 - min_ratio) (1 + cos(π progress)) / 2
  double factor(int64_t step) const;
};

}  // namespace lathe::optim
