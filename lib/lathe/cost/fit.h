#pragma once

#include <optional>

#include "lathe/cost/plan.h"

namespace lathe::cost {

/// The recipe with its open choices made: batch_size auto becomes the largest divisor of global_batch_size whose plan
/// fits into `available_bytes`; activation_checkpointing {budget} becomes the policy that recomputes least and keeps
/// the peak within the budget. Throws Error{Resource}, with the numbers and what would fit, when nothing does.
recipe::Recipe settle(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, int64_t available_bytes);

/// The plan of a settled recipe. Throws Error{Resource}, with the numbers and what would fit, when it exceeds
/// `available_bytes`.
Plan require_fit(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, int64_t available_bytes);

/// The largest batch_size, up to 10^9, whose plan keeps within `available_bytes`; none when one sample does not.
std::optional<int64_t> largest_batch(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                                     Amount available_bytes);

}  // namespace lathe::cost
