#include <array>
#include <cstdio>

#include "console.h"
#include "lathe/base/memory.h"
#include "lathe/cost/fit.h"
#include "lathe/cost/time.h"
#include "lathe/train/measure_step.h"
#include "plan_text.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

std::string comparison(const std::string& name, const std::string& planned, const std::string& measured, double ratio) {
  std::array<char, 128> text{};
  std::snprintf(text.data(), text.size(), "  %-16s%12s%12s%+9.2f %%\n", name.c_str(), planned.c_str(), measured.c_str(),
                100 * (ratio - 1));
  return text.data();
}

std::string bytes_row(const std::string& name, cost::Amount planned, int64_t measured_bytes) {
  const auto measured = static_cast<cost::Amount>(measured_bytes);
  if (planned == 0 && measured == 0) return "";
  return comparison(name, cost::bytes_text(planned), cost::bytes_text(measured), planned / measured);
}

// Where there are experts: the same plan, for the loads that they had.
struct Comparison {
  const cost::Plan &plan, &for_loads, &counted;
  const train::MeasuredStep& measured;
  std::optional<double> seconds;

  std::string text() const {
    const cost::Plan::Memory& memory = plan.memory;
    std::string text = "\nmeasured by real steps       planned    measured    error\n";
    text += bytes_row("weights", memory.weights, measured.weight_bytes);
    text += bytes_row("gradients", memory.gradients, measured.gradient_bytes);
    text += bytes_row("optimizer", memory.optimizer, measured.optimizer_bytes);
    text += bytes_row("checkpoint", memory.checkpoint, measured.checkpoint_bytes);
    text += bytes_row("activations", for_loads.memory.activations, measured.activation_bytes);
    text += bytes_row("peak", memory.peak, measured.peak_bytes);
    if (!measured.loads.empty()) text += bytes_row("for these loads", for_loads.memory.peak, measured.peak_bytes);
    text += bytes_row("resident", memory.peak + static_cast<cost::Amount>(measured.start_rss_bytes),
                      measured.peak_rss_bytes);
    const auto flops = static_cast<cost::Amount>(measured.flops);
    text += comparison("operations", unit_text(counted.flops.total(), "FLOP"), unit_text(flops, "FLOP"),
                       counted.flops.total() / flops);
    if (seconds)
      return text +
             comparison("time", seconds_text(*seconds), seconds_text(measured.seconds), *seconds / measured.seconds);
    std::array<char, 64> time{};
    std::snprintf(time.data(), time.size(), "  %-16s%12s%12s\n", "time", "unknown",
                  seconds_text(measured.seconds).c_str());
    return text + time.data();
  }

  Json json() const {
    return {{"weights", measured.weight_bytes},
            {"gradients", measured.gradient_bytes},
            {"optimizer", measured.optimizer_bytes},
            {"checkpoint", measured.checkpoint_bytes},
            {"activations", measured.activation_bytes},
            {"peak", measured.peak_bytes},
            {"peak_rss", measured.peak_rss_bytes},
            {"process_base", measured.start_rss_bytes},
            {"flops_per_step", measured.flops},
            {"seconds_per_step", measured.seconds},
            {"planned_for_loads",
             {{"peak", cost::whole(for_loads.memory.peak)},
              {"activations", cost::whole(for_loads.memory.activations)},
              {"flops_per_step", cost::whole(counted.flops.total())}}}};
  }
};

}  // namespace

int run_measured_plan(const CommandLine& line) {
  const recipe::Recipe given = recipe::load(line.recipe, line.overrides);
  const recipe::ResolvedModel resolved = recipe::resolve_model(given);
  const int64_t available = available_memory_bytes();
  const recipe::Recipe settled = cost::settle(given, resolved, available);
  const cost::Plan plan = cost::require_fit(settled, resolved, available);
  const train::MeasuredStep measured = train::measure_step(settled);
  const cost::Plan for_loads = cost::make_plan(settled, resolved, measured.loads),
                   counted = cost::make_plan(settled, resolved, measured.counted_loads);
  const std::optional<double> seconds = cost::estimate_seconds(plan, cost::measured_speed());
  const Comparison comparison{plan, for_loads, counted, measured, seconds};
  if (line.json) {
    Json json = cost::to_json(plan, seconds);
    json["available_bytes"] = available;
    json["fits"] = true;
    json["measured"] = comparison.json();
    print_result(json.dump() + "\n");
    return 0;
  }
  print_result(plan_text(plan, seconds, available) + comparison.text());
  return 0;
}

}  // namespace lathe::app
