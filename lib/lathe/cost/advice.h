#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/cost/plan.h"

namespace lathe::cost {

/// One change of a recipe, as overrides that the command line takes, and the plan that it leads to.
struct Change {
  std::vector<std::string> overrides;  ///< {"quant.type=nf4"}
  Plan plan;
};

/// What each knob would save or cost: a settled recipe, whose plan is given, planned again with one change at a time,
/// the smallest peak first, of equal ones the fewest operations. The knobs: smaller micro-batches in more accumulation,
/// the checkpointing policies, four bits, storage in bfloat16, the rank, the length of texts, an adapter instead of all
/// weights. Changes without effect are left out.
std::vector<Change> possible_changes(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                                     const Plan& plan);

/// What a settled recipe would need least to keep within `available_bytes`: a combination of the same knobs, turned in
/// this order as far as it takes: smaller micro-batches in more accumulation, checkpointing elementwise, in full, an
/// adapter, four bits, shorter texts. None when all of them together do not fit.
std::optional<Change> fitting_change(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                                     Amount available_bytes);

/// All of them, the largest first.
std::vector<int64_t> divisors(int64_t number);

recipe::Recipe with_batches(recipe::Recipe recipe, int64_t batch_size, int64_t accumulation);

/// Overrides as a shell takes them: quoted where it would split or expand them.
std::string command_line_text(const std::vector<std::string>& words);

/// Of each change its overrides, and peak, operations and trainable weights under it.
Json to_json(const std::vector<Change>& changes);

}  // namespace lathe::cost
