#pragma once

#include <string>

#include "lathe/cost/plan.h"

namespace lathe::app {

/// A plan for people.
std::string plan_text(const cost::Plan& plan, int64_t available_bytes);

}  // namespace lathe::app
