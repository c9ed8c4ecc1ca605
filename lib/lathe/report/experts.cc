#include "lathe/report/experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/report/document.h"
#include "lathe/report/run.h"
#include "lathe/report/tables.h"

namespace lathe::report {
namespace {

constexpr size_t kMaxMaps = 12, kMaxMapColumns = 100, kMaxMapRows = 64;
constexpr double kDarkest = 4;  // times the even share

using Shares = std::vector<double>;

std::string layer_note(const ExpertLoads& loads, size_t layer, size_t together) {
  std::string note = std::to_string(loads.num_experts[layer]) + " experts";
  if (together > 1) note += ", each row the mean of " + std::to_string(together);
  return note;
}

// The mean shares of a layer's experts over the steps [first, last).
template <typename Step>
Shares mean_shares(const ExpertLoads& loads, size_t layer, Step first, Step last) {
  const auto begin = static_cast<ptrdiff_t>(
      std::accumulate(loads.num_experts.begin(), loads.num_experts.begin() + static_cast<ptrdiff_t>(layer), size_t{0}));
  Shares sums(loads.num_experts[layer]);
  double count = 0;
  for (; first != last; ++first, ++count)
    std::transform(sums.begin(), sums.end(), first->second.begin() + begin, sums.begin(), std::plus<>());
  for (double& sum : sums) sum /= std::max(count, 1.0);
  return sums;
}

double entropy_of(const Shares& shares) {
  double entropy = 0;
  for (const double share : shares) entropy -= share > 0 ? share * std::log(share) : 0;
  return shares.size() > 1 ? entropy / std::log(static_cast<double>(shares.size())) : 1;
}

// At most `count` layers, those that are loaded least evenly, in order.
std::vector<size_t> shown_layers(const ExpertLoads& loads, size_t count) {
  std::vector<std::pair<double, size_t>> layers;
  for (size_t layer = 0; layer < loads.num_experts.size(); ++layer)
    layers.emplace_back(entropy_of(mean_shares(loads, layer, loads.steps.begin(), loads.steps.end())), layer);
  std::sort(layers.begin(), layers.end());
  layers.resize(std::min(layers.size(), count));
  std::vector<size_t> shown;
  for (const auto& layer : layers) shown.push_back(layer.second);
  std::sort(shown.begin(), shown.end());
  return shown;
}

// Shades of a map's rows: of `together` experts each, their mean share over the even one.
std::vector<double> shades(const Shares& shares, size_t together) {
  const auto num_experts = static_cast<double>(shares.size());
  std::vector<double> rows;
  for (size_t first = 0; first < shares.size(); first += together) {
    const size_t last = std::min(first + together, shares.size());
    const double sum = std::accumulate(shares.begin() + static_cast<ptrdiff_t>(first),
                                       shares.begin() + static_cast<ptrdiff_t>(last), 0.0);
    rows.push_back(sum / static_cast<double>(last - first) * num_experts / std::min(kDarkest, num_experts));
  }
  return rows;
}

HeatMap load_map(const ExpertLoads& loads, size_t layer, const std::string& run) {
  const size_t together = (loads.num_experts[layer] + kMaxMapRows - 1) / kMaxMapRows;
  HeatMap map{.title = "Load of expert layer " + std::to_string(layer) + (run.empty() ? "" : ": " + run),
              .note = layer_note(loads, layer, together),
              .row_label = "expert",
              .column_label = "step " + std::to_string(static_cast<int64_t>(loads.steps.begin()->first)) + " to " +
                              std::to_string(static_cast<int64_t>(loads.steps.rbegin()->first))};
  const size_t num_steps = loads.steps.size(), num_columns = std::min(num_steps, kMaxMapColumns);
  auto first = loads.steps.begin();
  for (size_t column = 0; column < num_columns; ++column) {
    const auto begin = static_cast<ptrdiff_t>(column * num_steps / num_columns),
               end = static_cast<ptrdiff_t>((column + 1) * num_steps / num_columns);
    const auto last = std::next(first, end - begin);
    map.columns.push_back(shades(mean_shares(loads, layer, first, last), together));
    first = last;
  }
  return map;
}

}  // namespace

void ExpertLoads::add(double step, const JsonObject& line) {
  const Json* value = line.find("moe_load");
  if (value == nullptr) return;
  if (!value->is_array()) throw line.error("moe_load", Diagnostic::expected("a list of lists", describe(*value)));
  if (value->empty()) return;  // nothing was routed
  std::vector<size_t> sizes;
  std::vector<float> shares;
  for (const Json& layer : *value) {
    if (!layer.is_array() || layer.empty())
      throw line.error("moe_load", Diagnostic::expected("a list of shares per layer", describe(layer)));
    sizes.push_back(layer.size());
    for (const Json& share : layer) {
      if (!share.is_number() || !(share.get<double>() >= 0 && share.get<double>() <= 1))
        throw line.error("moe_load", Diagnostic::expected("numbers in [0, 1]", describe(share)));
      shares.push_back(share.get<float>());
    }
  }
  if (!steps.empty() && sizes != num_experts)
    throw line.error("moe_load", "has other layers or experts than the steps before");
  num_experts = std::move(sizes);
  steps[step] = std::move(shares);
}

std::string experts_section(const std::vector<Run>& runs) {
  std::vector<HeatMap> maps;
  bool all = true;
  for (size_t i = 0; i < runs.size(); ++i) {
    const ExpertLoads& loads = runs[i].loads;
    const std::vector<size_t> layers = shown_layers(loads, std::max<size_t>(1, kMaxMaps / runs.size()));
    all = all && layers.size() == loads.num_experts.size();
    for (const size_t layer : layers) maps.push_back(load_map(loads, layer, runs.size() > 1 ? run_label(runs, i) : ""));
  }
  if (maps.empty()) return "";
  return "<section>\n<h2>Experts</h2>\n<p class=\"note\">The share of the assignments that each expert gets, the "
         "darker "
         "the more; black is 4 times the even share, or above" +
         std::string(all ? "" : ". Shown are the least even layers") + ".</p>\n" + heat_maps(maps) + "</section>\n";
}

}  // namespace lathe::report
