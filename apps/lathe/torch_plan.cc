#include <array>
#include <cstdio>

#include "console.h"
#include "lathe/base/memory.h"
#include "lathe/base/text.h"
#include "lathe/cost/plan.h"
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
  if (line.json) {
    Json json = cost::to_json(plan);
    json["available_bytes"] = available;
    json["fits"] = true;
    json["measured"] = {{"peak", measured.peak_bytes},
                        {"activations", measured.activation_bytes},
                        {"peak_rss", measured.peak_rss_bytes},
                        {"process_base", measured.start_rss_bytes},
                        {"seconds_per_step", measured.seconds}};
    print_result(json.dump() + "\n");
    return 0;
  }
  std::string text = plan_text(plan, available);
  text += "\nmeasured by one real step    planned    measured    error\n";
  text += comparison("activations", plan.memory.activations, static_cast<double>(measured.activation_bytes));
  text += comparison("peak", plan.memory.peak, static_cast<double>(measured.peak_bytes));
  text += comparison("resident", plan.memory.peak + static_cast<double>(measured.start_rss_bytes),
                     static_cast<double>(measured.peak_rss_bytes));
  std::array<char, 64> seconds{};
  std::snprintf(seconds.data(), seconds.size(), "  %-16s%12.4g%12.4g s\n", "time", plan.seconds.value_or(0),
                measured.seconds);
  print_result(text + seconds.data());
  return 0;
}

}  // namespace lathe::app
