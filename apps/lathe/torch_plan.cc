#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>
#include <vector>

#include "console.h"
#include "lathe/base/memory.h"
#include "lathe/train/measure_step.h"
#include "plan_text.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

std::string comparison(const std::string& name, const std::string& planned, const std::string& measured, double ratio) {
  std::array<char, 128> text{};
  std::snprintf(text.data(), text.size(), "  %-20s%14s%14s%+9.2f %%\n", name.c_str(), planned.c_str(), measured.c_str(),
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
    std::string text = "\nmeasured by real steps       planned      measured      error\n";
    text += bytes_row("weights", memory.weights, measured.weight_bytes);
    text += bytes_row("gradients", memory.gradients, measured.gradient_bytes);
    text += bytes_row("optimizer", memory.optimizer, measured.optimizer_bytes);
    text += bytes_row("checkpoint", memory.checkpoint, measured.checkpoint_bytes);
    text += bytes_row("activations", memory.activations, measured.activation_bytes);
    text += bytes_row("peak", memory.peak, measured.peak_bytes);
    for (const auto& [phase, bytes] : measured.phase_peaks) {
      const auto planned = std::find_if(memory.phases.begin(), memory.phases.end(),
                                        [name = phase](const auto& part) { return part.first == name; });
      if (planned != memory.phases.end()) text += bytes_row("  in " + phase, planned->second, bytes);
    }
    // What the libraries and malloc keep is not planned.
    text += bytes_row("resident with base", memory.peak + static_cast<cost::Amount>(measured.base_bytes),
                      measured.peak_rss_bytes);
    text += operations_row(plan) + time_row();
    if (measured.loads.empty()) return text;
    text += "for the loads that its routers gave\n";
    text += bytes_row("activations", for_loads.memory.activations, measured.activation_bytes);
    return text + bytes_row("peak", for_loads.memory.peak, measured.peak_bytes) + operations_row(counted);
  }

  std::string operations_row(const cost::Plan& planned) const {
    const auto flops = static_cast<cost::Amount>(measured.flops);
    return comparison("operations", unit_text(planned.flops.total(), "FLOP"), unit_text(flops, "FLOP"),
                      planned.flops.total() / flops);
  }

  std::string time_row() const {
    if (seconds)
      return comparison("time", seconds_text(*seconds), seconds_text(measured.seconds), *seconds / measured.seconds);
    std::array<char, 64> time{};
    std::snprintf(time.data(), time.size(), "  %-20s%14s%14s\n", "time", "unknown",
                  seconds_text(measured.seconds).c_str());
    return time.data();
  }

  Json json() const {
    return {{"weights", measured.weight_bytes},
            {"gradients", measured.gradient_bytes},
            {"optimizer", measured.optimizer_bytes},
            {"checkpoint", measured.checkpoint_bytes},
            {"activations", measured.activation_bytes},
            {"peak", measured.peak_bytes},
            {"peak_by_phase", measured.phase_peaks},
            {"peak_rss", measured.peak_rss_bytes},
            {"process_base", measured.base_bytes},
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
  const recipe::Recipe recipe = recipe::load(line.recipe, line.overrides);
  const int64_t available = cost::plannable_bytes(available_memory_bytes());
  const PlanReport report(recipe, available);
  cost::require_fit(recipe, report.resolved, available);
  const train::MeasuredStep measured = train::measure_step(report.settled.recipe);
  const auto with = [&](std::vector<cost::ExpertLoad> loads) {
    return cost::make_plan(report.settled.recipe, report.resolved, std::move(loads));
  };
  const cost::Plan for_loads = with(measured.loads), counted = with(measured.counted_loads);
  const Comparison comparison{report.plan(), for_loads, counted, measured, report.seconds()};
  if (line.json) {
    Json json = report.json();
    json["measured"] = comparison.json();
    print_result(json.dump() + "\n");
  } else {
    print_result(report.text() + comparison.text() + report.advice_text());
  }
  return 0;
}

}  // namespace lathe::app
