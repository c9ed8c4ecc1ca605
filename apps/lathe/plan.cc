#include "lathe/cost/plan.h"

#include "console.h"
#include "lathe/base/memory.h"
#include "lathe/cost/advice.h"
#include "lathe/cost/time.h"
#include "plan_text.h"
#include "verbs.h"

namespace lathe::app {

int run_plan(const CommandLine& line) {
  const recipe::Recipe given = recipe::load(line.recipe, line.overrides, recipe::Purpose::Plan);
  const recipe::ResolvedModel resolved = recipe::resolve_model(given);
  const int64_t available = available_memory_bytes();
  const recipe::Recipe settled = cost::settle(given, resolved, available);
  const cost::Plan plan = cost::make_plan(settled, resolved);
  const std::optional<double> seconds = cost::estimate_seconds(plan, cost::measured_speed());
  const std::vector<cost::Change> changes = cost::possible_changes(settled, resolved, plan);
  const std::optional<int64_t> largest = cost::largest_batch(settled, resolved, static_cast<cost::Amount>(available));
  if (line.json) {
    Json json = cost::to_json(plan, seconds);
    json["available_bytes"] = available;
    json["fits"] = plan.memory.peak <= static_cast<double>(available);
    json["largest_batch_size"] = largest ? Json(*largest) : Json(nullptr);
    json["changes"] = cost::to_json(changes);
    print_result(json.dump() + "\n");
  } else {
    print_result(plan_text(plan, seconds, available) + advice_text(plan, changes, largest));
  }
  return 0;
}

}  // namespace lathe::app
