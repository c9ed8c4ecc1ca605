#include "lathe/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lathe::optim {
namespace {

double ratio(int64_t part, int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(std::max<int64_t>(1, whole));
}

double half_cosine(double progress) { return std::max(0.0, 0.5 * (1 + std::cos(std::numbers::pi * progress))); }

}  // namespace

double Schedule::factor(int64_t step) const {
  const auto above_minimum = [this](double share) { return min_ratio + (1 - min_ratio) * share; };
  if (step < num_warmup_steps) {
    const double rise = ratio(step, num_warmup_steps);
    return type == ScheduleType::Wsd ? above_minimum(rise) : rise;
  }
  const int64_t since_warmup = step - num_warmup_steps;
  switch (type) {
    case ScheduleType::Constant:
      return 1;
    case ScheduleType::Linear:
      return std::max(0.0, ratio(num_steps - step, num_steps - num_warmup_steps));
    case ScheduleType::Cosine:
      return above_minimum(half_cosine(ratio(since_warmup, num_steps - num_warmup_steps)));
    case ScheduleType::InverseSqrt: {
      const int64_t timescale = num_warmup_steps > 0 ? num_warmup_steps : 10'000;
      return 1 / std::sqrt(static_cast<double>(since_warmup + timescale) / static_cast<double>(timescale));
    }
    case ScheduleType::Wsd:
      break;
  }
  const int64_t first_decay = std::max(num_warmup_steps, num_steps - num_decay_steps);
  if (step < first_decay) return 1;
  if (step >= first_decay + num_decay_steps) return min_ratio;
  return above_minimum(half_cosine(ratio(step - first_decay, num_decay_steps)));
}

}  // namespace lathe::optim
