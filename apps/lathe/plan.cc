#include "console.h"
#include "lathe/base/memory.h"
#include "plan_text.h"
#include "verbs.h"

namespace lathe::app {

int run_plan(const CommandLine& line) {
  const std::optional<cost::MachineSpeed> machine = cost::measured_speed();
  const int64_t base = machine ? machine->process_base_bytes : 0;  // of the process that will train
  const PlanReport report(recipe::load(line.recipe, line.overrides, recipe::Purpose::Plan),
                          cost::plannable_bytes(available_memory_bytes() - base));
  print_result(line.json ? report.json().dump() + "\n" : report.text() + report.advice_text());
  return 0;
}

}  // namespace lathe::app
