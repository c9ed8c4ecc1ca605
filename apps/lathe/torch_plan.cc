#include <array>
#include <cstdio>

#include "console.h"
#include "lathe/base/memory.h"
#include "lathe/base/text.h"
#include "lathe/cost/plan.h"
#include "lathe/cost/time.h"
#include "lathe/train/measure_step.h"
#include "plan_text.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

std::string comparison(const char* name, double planned, double measured) {
  std::array<char, 128> text{};
  std::snprintf(text.data(), text.size(), "  %-16s%12s%12s%+9.2f %%\n", name,
                format_bytes(static_cast<uint64_t>(planned)).c_str(),
                format_bytes(static_cast<uint64_t>(measured)).c_str(), 100 * (planned / measured - 1));
  return text.data();
}

}  // namespace

int run_measured_plan(const CommandLine& line) {
  const recipe::Recipe given = recipe::load(line.recipe, line.overrides);
  const recipe::ResolvedModel resolved = recipe::resolve_model(given);
  const int64_t available = available_memory_bytes();
  const recipe::Recipe settled = cost::settle(given, resolved, available);
  const cost::Plan plan = cost::require_fit(settled, resolved, available);
  const train::MeasuredStep measured = train::measure_step(settled);
  // Where there are experts: the plan for the loads that they had.
  const cost::Plan informed = cost::make_plan(settled, resolved, measured.fullest);
  const std::optional<double> seconds = cost::estimate_seconds(plan, cost::measured_speed());
  if (line.json) {
    Json json = cost::to_json(plan, seconds);
    json["available_bytes"] = available;
    json["fits"] = true;
    json["measured"] = {{"peak", measured.peak_bytes},
                        {"activations", measured.activation_bytes},
                        {"peak_rss", measured.peak_rss_bytes},
                        {"process_base", measured.start_rss_bytes},
                        {"flops_per_step", measured.flops},
                        {"seconds_per_step", measured.seconds},
                        {"peak_planned_for_loads", cost::whole(informed.memory.peak)}};
    print_result(json.dump() + "\n");
    return 0;
  }
  std::string text = plan_text(plan, seconds, available);
  text += "\nmeasured by one real step    planned    measured    error\n";
  text += comparison("activations", plan.memory.activations, static_cast<double>(measured.activation_bytes));
  text += comparison("peak", plan.memory.peak, static_cast<double>(measured.peak_bytes));
  if (!measured.fullest.empty())
    text += comparison("for these loads", informed.memory.peak, static_cast<double>(measured.peak_bytes));
  text += comparison("resident", plan.memory.peak + static_cast<double>(measured.start_rss_bytes),
                     static_cast<double>(measured.peak_rss_bytes));
  std::array<char, 96> operations{}, times{};
  std::snprintf(operations.data(), operations.size(), "  %-16s%12.6g%12.6g%+9.2f %%\n", "FLOP", plan.flops.total(),
                static_cast<double>(measured.flops),
                100 * (plan.flops.total() / static_cast<double>(measured.flops) - 1));
  if (seconds) {
    std::snprintf(times.data(), times.size(), "  %-16s%10.3g s%10.3g s%+9.2f %%\n", "time", *seconds, measured.seconds,
                  100 * (*seconds / measured.seconds - 1));
  } else {
    std::snprintf(times.data(), times.size(), "  %-16s%12s%10.3g s\n", "time", "unknown", measured.seconds);
  }
  print_result(text + operations.data() + times.data());
  return 0;
}

}  // namespace lathe::app
