#pragma once

#include <optional>

#include "lathe/cost/plan.h"

namespace lathe::cost {

/// A recipe without open choices, and its plan beside the memory that it may take.
struct Settled {
  recipe::Recipe recipe;
  Plan plan;
  int64_t limit_bytes = 0;  ///< what is available, or the smaller budget of activation_checkpointing
  bool budgeted = false;    ///< it is the budget

  bool fits() const { return plan.memory.peak <= static_cast<Amount>(limit_bytes); }
};

/// Of memory that is free, what the tensors of a plan may take: their blocks leave holes, up to 4 % of the peak in
/// steps that were measured, so that a 20th stays free.
int64_t plannable_bytes(int64_t free_bytes);

/// Makes the open choices: batch_size auto becomes the largest divisor of global_batch_size whose plan fits into
/// `available_bytes`; activation_checkpointing {budget} becomes the policy that recomputes least and keeps the peak
/// within the budget. Where nothing fits, the least that the recipe allows.
Settled settle(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, int64_t available_bytes);

/// The same of a model that is known already.
Settled settle(const recipe::Recipe& recipe, const TrainedModel& model, int64_t available_bytes);

/// The same. Throws Error{Resource}, with the numbers and what would fit, when the plan does not.
Settled require_fit(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, int64_t available_bytes);

/// The largest batch_size, up to 10^9, with which the recipe fits into `available_bytes`; none when one sample does
/// not.
std::optional<int64_t> largest_batch(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                                     int64_t available_bytes);

}  // namespace lathe::cost
