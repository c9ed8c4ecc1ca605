#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/cost/fit.h"

namespace lathe::cost {

/// One change of a recipe, as overrides that the command line takes, and the plan that it leads to.
struct Change {
  std::vector<std::string> overrides;  ///< {"quant.type=nf4"}
  Plan plan;
  bool fits = false;
};

/// What each knob would save or cost: the recipe `given`, which settled as `now`, settled again with one change at a
/// time, the smallest peak first, of equal ones the fewest operations. The knobs: the optimizer step in more or fewer
/// micro-batches, the checkpointing policies, four bits, storage in bfloat16, the rank, the length of texts, an adapter
/// instead of all weights. Changes without effect are left out.
std::vector<Change> possible_changes(const recipe::Recipe& given, const recipe::ResolvedModel& resolved,
                                     const Settled& now, int64_t available_bytes);

/// What a recipe that does not fit would need: a combination of the same knobs, turned in this order as far as it
/// takes: smaller micro-batches in more accumulation, checkpointing elementwise, in full, an adapter, storage in
/// bfloat16, four bits, scales quantised as well, smaller ranks, shorter texts. Then back, the last first, with each
/// without which it fits: none is left that could be spared. None when all together do not fit.
std::optional<Change> fitting_change(const recipe::Recipe& given, const recipe::ResolvedModel& resolved,
                                     int64_t available_bytes);

/// All of them, the largest first.
std::vector<int64_t> divisors(int64_t number);

recipe::Recipe with_batches(recipe::Recipe recipe, int64_t batch_size, int64_t accumulation);

/// Overrides as a shell takes them: quoted where it would split or expand them.
std::string command_line_text(const std::vector<std::string>& words);

/// Of each change its overrides, and peak, operations and trainable weights under it.
Json to_json(const std::vector<Change>& changes);

}  // namespace lathe::cost
