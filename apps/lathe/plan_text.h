#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/cost/advice.h"
#include "lathe/cost/fit.h"
#include "lathe/cost/time.h"

namespace lathe::app {

/// All that `lathe plan` says without running a step.
struct PlanReport {
  PlanReport(const recipe::Recipe& recipe, int64_t available);

  recipe::ResolvedModel resolved;
  int64_t available_bytes;  ///< for a run's tensors
  cost::Settled settled;
  std::optional<cost::MachineSpeed> speed;
  std::vector<cost::Change> changes;
  std::optional<int64_t> largest_batch;
  std::optional<cost::Change> fitting;  ///< where the plan itself does not fit: the least that does

  const cost::Plan& plan() const { return settled.plan; }
  std::optional<double> seconds() const { return cost::estimate_seconds(plan(), speed); }
  std::string text() const;
  std::string advice_text() const;
  Json json() const;
};

/// "291.2 MB", "59.37 TFLOP".
std::string unit_text(cost::Amount amount, const char* unit);
/// "0.781 s", "12.3 min", "4.1 years".
std::string seconds_text(double seconds);

}  // namespace lathe::app
