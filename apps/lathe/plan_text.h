#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/cost/advice.h"
#include "lathe/cost/plan.h"

namespace lathe::app {

/// A plan for people. `seconds`: of a step, where they are known.
std::string plan_text(const cost::Plan& plan, std::optional<double> seconds, int64_t available_bytes);

/// What knobs would do, and the largest batch that fits.
std::string advice_text(const cost::Plan& plan, const std::vector<cost::Change>& changes,
                        std::optional<int64_t> largest_batch);

}  // namespace lathe::app
