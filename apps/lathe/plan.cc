#include "lathe/cost/plan.h"

#include <array>
#include <cstdio>

#include "console.h"
#include "lathe/base/memory.h"
#include "lathe/base/text.h"
#include "plan_text.h"
#include "verbs.h"

namespace lathe::app {

int run_plan(const CommandLine& line) {
  const recipe::Recipe given = recipe::load(line.recipe, line.overrides);
  const recipe::ResolvedModel resolved = recipe::resolve_model(given);
  const int64_t available = available_memory_bytes();
  const cost::Plan plan = cost::make_plan(cost::settle(given, resolved, available), resolved);
  const bool fits = plan.memory.peak <= static_cast<double>(available);
  if (line.json) {
    Json json = cost::to_json(plan);
    json["available_bytes"] = available;
    json["fits"] = fits;
    print_result(json.dump() + "\n");
  } else {
    print_result(plan_text(plan, available));
  }
  return 0;
}

}  // namespace lathe::app
