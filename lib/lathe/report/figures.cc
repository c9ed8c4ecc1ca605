#include "lathe/report/figures.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "lathe/base/text.h"

namespace lathe::report {
namespace {

using Better = Figure::Better;

double sum_finite(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0,
                         [](double sum, double value) { return std::isfinite(value) ? sum + value : sum; });
}

// The position of the best finite value, or the size when there is none. Without a direction the last one counts.
size_t best_of(const std::vector<double>& values, Better better) {
  size_t best = values.size();
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) continue;
    const bool first = best == values.size();
    if (first || better == Better::Neither || (better == Better::Lower && values[i] < values[best]) ||
        (better == Better::Higher && values[i] > values[best]))
      best = i;
  }
  return best;
}

Better direction(const std::string& measure) {
  if (measure == "eval_loss" || measure == "perplexity") return Better::Lower;
  return measure == "accuracy" || measure == "top5_accuracy" || measure == "f1" ? Better::Higher : Better::Neither;
}

void add_losses(const Run& run, std::vector<Figure>& figures) {
  const auto* loss = run.steps.find("loss");
  if (loss == nullptr) return;
  const size_t last = best_of(*loss, Better::Neither);
  if (last == loss->size()) return;
  figures.push_back({"Final loss", format_number((*loss)[last]), (*loss)[last], Better::Lower});
}

void add_measures(const Run& run, std::vector<Figure>& figures) {
  for (const auto& [name, values] : run.evaluations.columns) {
    if (name == "epoch") continue;
    const Better better = direction(name);
    const size_t best = best_of(values, better);
    if (best == values.size()) continue;
    const std::string place =
        values.size() == 1 ? "" : "step " + std::to_string(static_cast<int64_t>(run.evaluations.step[best]));
    figures.push_back({(better == Better::Neither ? "Last " : "Best ") + name, format_number(values[best]),
                       values[best], better, place});
  }
}

void add_balance(const Run& run, std::vector<Figure>& figures) {
  const auto add = [&](const char* column, const char* label, Better better) {
    const auto* values = run.steps.find(column);
    if (values == nullptr) return;
    const size_t last = best_of(*values, Better::Neither);
    if (last < values->size()) figures.push_back({label, format_number((*values)[last]), (*values)[last], better});
  };
  add("moe_entropy", "Routing entropy", Better::Higher);
  add("moe_dead", "Dead experts", Better::Lower);
}

void add_amounts(const Run& run, std::vector<Figure>& figures) {
  if (run.steps.step.empty()) return;
  const double steps = run.steps.step.back();
  figures.push_back({"Steps", std::to_string(static_cast<int64_t>(steps)), steps});
  if (const auto* epoch = run.steps.find("epoch"); epoch != nullptr && std::isfinite(epoch->back()))
    figures.push_back({"Epochs", format_number(epoch->back()), epoch->back()});
  const auto* tokens = run.steps.find("tokens");
  const auto* seconds = run.steps.find("seconds");
  const double total_seconds = seconds == nullptr ? 0 : sum_finite(*seconds);
  if (tokens != nullptr && total_seconds > 0) {
    const double rate = sum_finite(*tokens) / total_seconds;
    figures.push_back({"Tokens per second", format_number(rate), rate, Better::Higher});
  }
  if (total_seconds > 0)
    figures.push_back({"Time in steps", format_seconds(total_seconds), total_seconds, Better::Lower});
  if (const auto* memory = run.steps.find("peak_rss_bytes")) {
    const size_t peak = best_of(*memory, Better::Higher);
    if (peak < memory->size())
      figures.push_back(
          {"Peak memory", format_named("peak_rss_bytes", (*memory)[peak]), (*memory)[peak], Better::Lower});
  }
}

}  // namespace

std::vector<Figure> final_figures(const Run& run) {
  std::vector<Figure> figures;
  add_losses(run, figures);
  add_measures(run, figures);
  add_balance(run, figures);
  add_amounts(run, figures);
  return figures;
}

std::string format_number(double value) {
  std::array<char, 40> text{};
  const bool whole = std::abs(value) >= 1e4 && std::abs(value) < 1e15;
  std::snprintf(text.data(), text.size(), whole ? "%.0f" : "%.4g", value);
  return text.data();
}

std::string format_seconds(double seconds) {
  if (seconds < 60) return format_number(seconds) + " s";
  const double whole = std::round(seconds);
  if (whole >= 1e15) return format_number(seconds) + " s";
  const auto total = static_cast<int64_t>(whole);
  if (total < 3600) return std::to_string(total / 60) + " min " + std::to_string(total % 60) + " s";
  return std::to_string(total / 3600) + " h " + std::to_string(total / 60 % 60) + " min";
}

std::string format_named(const std::string& name, double value) {
  if (name.ends_with("bytes") && value >= 0 && value < 0x1p63) return format_bytes(static_cast<uint64_t>(value));
  return format_number(value);
}

}  // namespace lathe::report
