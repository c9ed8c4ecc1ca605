#include "lathe/cost/plan.h"

#include "console.h"
#include "lathe/base/memory.h"
#include "lathe/cost/advice.h"
#include "lathe/cost/fit.h"
#include "lathe/cost/time.h"
#include "plan_text.h"
#include "verbs.h"

namespace lathe::app {

int run_plan(const CommandLine& line) {
  const recipe::Recipe given = recipe::load(line.recipe, line.overrides, recipe::Purpose::Plan);
  const recipe::ResolvedModel resolved = recipe::resolve_model(given);
  const int64_t available_bytes = available_memory_bytes();
  const auto available = static_cast<cost::Amount>(available_bytes);
  const recipe::Recipe settled = cost::settle(given, resolved, available_bytes);
  const cost::Plan plan = cost::make_plan(settled, resolved);
  const std::optional<double> seconds = cost::estimate_seconds(plan, cost::measured_speed());
  const bool fits = plan.memory.peak <= available;
  Advice advice{cost::possible_changes(settled, resolved, plan), cost::largest_batch(settled, resolved, available), {}};
  if (!fits) advice.fitting = cost::fitting_change(settled, resolved, available);
  if (line.json) {
    Json json = cost::to_json(plan, seconds);
    json["available_bytes"] = available_bytes;
    json["fits"] = fits;
    json["largest_batch_size"] = advice.largest_batch ? Json(*advice.largest_batch) : Json(nullptr);
    json["changes"] = cost::to_json(advice.changes);
    json["least_change_that_fits"] = advice.fitting ? cost::to_json({*advice.fitting})[0] : Json(nullptr);
    print_result(json.dump() + "\n");
  } else {
    print_result(plan_text(plan, seconds, available_bytes) + advice_text(plan, advice, available_bytes));
  }
  return 0;
}

}  // namespace lathe::app
