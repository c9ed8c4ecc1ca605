#pragma once

#include <string>
#include <vector>

#include "lathe/report/run.h"

namespace lathe::report {

/// What is live at the planned peak, by component (run.json's planned_peak: NAME_bytes), as one bar of each run, and
/// the measured peak below it on the same scale; HTML that needs no script. Empty when no run has such a plan.
std::string memory_section(const std::vector<Run>& runs);

}  // namespace lathe::report
