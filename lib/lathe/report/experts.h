#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "lathe/base/json.h"

namespace lathe::report {

struct Run;

/// How a run's steps loaded its experts: `moe_load` of metrics.jsonl.
struct ExpertLoads {
  std::vector<size_t> num_experts;             ///< of each layer
  std::map<double, std::vector<float>> steps;  ///< by step, the shares of all experts, layer after layer

  /// Adds a step's line, which may have none; a step that is there is replaced. Throws Error{Data} unless moe_load is a
  /// list of lists of numbers in [0, 1], as long as those of the steps before.
  void add(double step, const JsonObject& line);
};

/// The loads as heat maps, expert by step, as HTML; of many layers the least even ones. Empty when no run has any.
std::string experts_section(const std::vector<Run>& runs);

}  // namespace lathe::report
