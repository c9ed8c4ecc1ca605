#include "lathe/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lathe::optim {

double Schedule::factor(int64_t step) const {
  if (step < num_warmup_steps)
    return static_cast<double>(step) / static_cast<double>(std::max<int64_t>(1, num_warmup_steps));
  const auto decaying = static_cast<double>(std::max<int64_t>(1, num_steps - num_warmup_steps));
  switch (type) {
    case ScheduleType::Constant:
      return 1;
    case ScheduleType::Linear:
      return std::max(0.0, static_cast<double>(num_steps - step) / decaying);
    case ScheduleType::Cosine:
      break;
  }
  const double progress = static_cast<double>(step - num_warmup_steps) / decaying;
  const double cosine = std::max(0.0, 0.5 * (1 + std::cos(std::numbers::pi * progress)));
  return min_ratio + (1 - min_ratio) * cosine;
}

}  // namespace lathe::optim
