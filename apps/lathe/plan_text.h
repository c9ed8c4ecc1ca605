#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/cost/advice.h"
#include "lathe/cost/plan.h"

namespace lathe::app {

/// What may be changed about a plan.
struct Advice {
  std::vector<cost::Change> changes;
  std::optional<int64_t> largest_batch;
  std::optional<cost::Change> fitting;  ///< where the plan itself does not fit: the least that does
};

/// "291.2 MB", "59.37 TFLOP".
std::string unit_text(cost::Amount amount, const char* unit);
std::string seconds_text(double seconds);

/// A plan for people. `seconds`: of a step, where they are known.
std::string plan_text(const cost::Plan& plan, std::optional<double> seconds, int64_t available_bytes);
std::string advice_text(const cost::Plan& plan, const Advice& advice, int64_t available_bytes);

}  // namespace lathe::app
