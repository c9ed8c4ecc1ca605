#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/cost/plan.h"

namespace lathe::cost {

/// One change of a recipe, as overrides that the command line takes, and the plan that it leads to.
struct Change {
  std::string overrides;  ///< "quant.type=nf4"
  Plan plan;
};

/// What each knob would save or cost: a settled recipe, whose plan is given, planned again with one change at a time,
/// the smallest peak first, of equal ones the fewest operations. The knobs: smaller micro-batches in more accumulation,
/// the checkpointing policies, four bits, storage in bfloat16, the rank, the length of texts, an adapter instead of all
/// weights. Changes without effect are left out.
std::vector<Change> possible_changes(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                                     const Plan& plan);

/// The largest batch_size, up to 10^9, whose plan keeps within `available_bytes`; none when one sample does not.
std::optional<int64_t> largest_batch(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                                     Amount available_bytes);

/// Of each change its overrides, and peak, operations and trainable weights under it.
Json to_json(const std::vector<Change>& changes);

}  // namespace lathe::cost
