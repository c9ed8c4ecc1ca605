#include "lathe/report/charts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

namespace lathe::report {
namespace {

using Kind = Curve::Kind;

constexpr size_t kMaxPoints = 2000;
constexpr size_t kMaxMeasures = 24;

bool has_values(const std::vector<double>* values) {
  return values != nullptr && std::any_of(values->begin(), values->end(), [](double y) { return std::isfinite(y); });
}

void add_column(Chart& chart, const MetricTable& table, const std::string& column, Curve curve) {
  const std::vector<double>* values = table.find(column);
  if (!has_values(values)) return;
  curve.series = thin_out({table.step, *values}, kMaxPoints);
  chart.curves.push_back(std::move(curve));
}

// Each step faint, with its exponential mean over it.
Chart smoothed_chart(const std::vector<Run>& runs, const std::string& column, Chart chart) {
  double longest = 0;
  for (const Run& run : runs) longest = std::max(longest, static_cast<double>(run.steps.step.size()));
  const double span = std::clamp(std::round(longest / 25), 5.0, 500.0);
  for (size_t i = 0; i < runs.size(); ++i)
    add_column(chart, runs[i].steps, column, {.label = chart.y_label, .run = i, .kind = Kind::Raw});
  for (size_t i = 0; i < runs.size(); ++i) {
    const std::vector<double>* values = runs[i].steps.find(column);
    if (!has_values(values)) continue;
    chart.curves.push_back(
        {"smoothed", i, Kind::Line, thin_out({runs[i].steps.step, smooth(*values, span)}, kMaxPoints)});
  }
  chart.note += " Each step, and its exponential mean over " + std::to_string(static_cast<int>(span)) + " steps.";
  return chart;
}

Chart step_chart(const std::vector<Run>& runs, const std::string& column, Chart chart) {
  for (size_t i = 0; i < runs.size(); ++i) add_column(chart, runs[i].steps, column, {.label = chart.y_label, .run = i});
  return chart;
}

void add_limit(Chart& chart, const Run& run, size_t index, const std::string& section) {
  const auto found = run.details.find(section);
  if (found == run.details.end() || !found->is_object() || run.steps.step.empty()) return;
  const auto peak = found->find("peak_bytes");
  if (peak == found->end() || !peak->is_number() || !std::isfinite(peak->get<double>())) return;
  const double level = peak->get<double>();
  chart.curves.push_back(
      {section + " peak", index, Kind::Limit, {{run.steps.step.front(), run.steps.step.back()}, {level, level}}});
}

Chart memory_chart(const std::vector<Run>& runs) {
  Chart chart = step_chart(runs, "peak_rss_bytes",
                           {.id = "memory",
                            .title = "Memory",
                            .note = "The most resident memory that the process has had so far.",
                            .y_label = "resident",
                            .bytes = true,
                            .from_zero = true});
  for (const char* section : {"planned", "measured"}) {
    for (size_t i = 0; i < runs.size(); ++i) add_limit(chart, runs[i], i, section);
  }
  return chart;
}

bool all_zero(const Chart& chart) {
  return std::all_of(chart.curves.begin(), chart.curves.end(), [](const Curve& curve) {
    return std::all_of(curve.series.y.begin(), curve.series.y.end(), [](double y) { return !(std::abs(y) > 0); });
  });
}

// How evenly a mixture's experts were used, of runs with experts.
std::vector<Chart> expert_charts(const std::vector<Run>& runs) {
  std::vector<Chart> charts;
  charts.push_back(smoothed_chart(runs, "moe_entropy",
                                  {.id = "moe_entropy",
                                   .title = "Routing entropy",
                                   .note = "Of the least even layer: 1 is even, 0 one expert for all tokens.",
                                   .y_label = "entropy",
                                   .from_zero = true}));
  charts.push_back(smoothed_chart(runs, "moe_max_vio",
                                  {.id = "moe_max_vio",
                                   .title = "MaxVio",
                                   .note = "Of the same layer: the fullest expert's load over the mean, less 1.",
                                   .y_label = "MaxVio",
                                   .from_zero = true}));
  charts.push_back(step_chart(runs, "moe_dead",
                              {.id = "moe_dead",
                               .title = "Dead experts",
                               .note = "Those with less than a tenth of the even load, in all layers.",
                               .y_label = "experts",
                               .from_zero = true}));
  std::vector<Chart> others;
  others.push_back(step_chart(runs, "moe_dropped",
                              {.id = "moe_dropped",
                               .title = "Dropped tokens",
                               .note = "The share of the assignments that found their expert full.",
                               .y_label = "dropped",
                               .from_zero = true}));
  others.push_back(step_chart(runs, "moe_loss",
                              {.id = "moe_loss",
                               .title = "Balance loss",
                               .note = "The weighted balance terms of all layers.",
                               .y_label = "loss"}));
  std::erase_if(others, all_zero);  // no capacity, no such terms
  std::move(others.begin(), others.end(), std::back_inserter(charts));
  return charts;
}

// Widens a curve's x to the run's steps with a gap, so that charts of evaluations line up with the others.
void reach_over_steps(Series& series, const std::vector<double>& steps) {
  constexpr double kGap = std::numeric_limits<double>::quiet_NaN();
  if (steps.empty()) return;
  if (steps.front() < series.x.front()) {
    series.x.insert(series.x.begin(), steps.front());
    series.y.insert(series.y.begin(), kGap);
  }
  if (steps.back() > series.x.back()) {
    series.x.push_back(steps.back());
    series.y.push_back(kGap);
  }
}

std::string measure_title(const std::string& measure) {
  if (measure == "eval_loss") return "Evaluation loss";
  if (measure == "f1") return "Evaluation F1";
  return "Evaluation " + measure;
}

std::vector<Chart> measure_charts(const std::vector<Run>& runs) {
  std::vector<std::string> measures;
  for (const Run& run : runs) {
    for (const auto& [name, values] : run.evaluations.columns) {
      if (name != "epoch" && has_values(&values) && std::find(measures.begin(), measures.end(), name) == measures.end())
        measures.push_back(name);
    }
  }
  if (measures.size() > kMaxMeasures) measures.resize(kMaxMeasures);
  std::vector<Chart> charts;
  for (const std::string& measure : measures) {
    Chart chart{
        .id = "eval_" + std::to_string(charts.size()), .title = measure_title(measure), .note = "", .y_label = measure};
    for (size_t i = 0; i < runs.size(); ++i) {
      const size_t before = chart.curves.size();
      add_column(chart, runs[i].evaluations, measure, {.label = measure, .run = i, .kind = Kind::Points});
      if (chart.curves.size() > before) reach_over_steps(chart.curves.back().series, runs[i].steps.step);
    }
    charts.push_back(std::move(chart));
  }
  return charts;
}

}  // namespace

std::vector<Chart> make_charts(const std::vector<Run>& runs) {
  std::vector<Chart> charts;
  charts.push_back(smoothed_chart(
      runs, "loss",
      {.id = "loss", .title = "Training loss", .note = "The mean over the items of the window.", .y_label = "loss"}));
  charts.push_back(smoothed_chart(runs, "lr",
                                  {.id = "lr",
                                   .title = "Learning rate",
                                   .note = "As used in each step.",
                                   .y_label = "learning rate",
                                   .from_zero = true}));
  charts.push_back(smoothed_chart(runs, "grad_norm",
                                  {.id = "grad_norm",
                                   .title = "Gradient norm",
                                   .note = "Of all gradients together, before clipping.",
                                   .y_label = "norm",
                                   .from_zero = true}));
  charts.push_back(smoothed_chart(runs, "tokens_per_second",
                                  {.id = "throughput",
                                   .title = "Throughput",
                                   .note = "Tokens without padding, by the time of the step.",
                                   .y_label = "tokens per second",
                                   .from_zero = true}));
  charts.push_back(memory_chart(runs));
  for (std::vector<Chart> more : {expert_charts(runs), measure_charts(runs)})
    std::move(more.begin(), more.end(), std::back_inserter(charts));
  std::erase_if(charts, [](const Chart& chart) { return chart.curves.empty(); });
  return charts;
}

}  // namespace lathe::report
