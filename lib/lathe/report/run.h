#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lathe/base/json.h"
#include "lathe/report/evaluation.h"
#include "lathe/report/experts.h"

namespace lathe::report {

/// Columns of numbers over ascending steps. A value that is missing or not finite is NaN.
struct MetricTable {
  std::vector<double> step;
  std::vector<std::pair<std::string, std::vector<double>>> columns;  ///< each as long as `step`

  /// The values of a column, or null when no line has it.
  const std::vector<double>* find(const std::string& name) const;
};

/// What a run directory says about itself, as far as it was written.
struct Run {
  std::string name;                           ///< how the page calls it: the directory's name
  MetricTable steps;                          ///< metrics.jsonl: the lines of optimizer steps
  MetricTable evaluations;                    ///< metrics.jsonl: the lines with an eval_loss
  ExpertLoads loads;                          ///< metrics.jsonl: how steps loaded the experts
  std::string recipe;                         ///< recipe.yaml, empty when absent
  Json details;                               ///< run.json, an empty object when absent
  std::optional<ClassEvaluation> evaluation;  ///< evaluation.json
  std::vector<std::string> warnings;          ///< what could not be read, for people; may quote the files
};

/// Reads DIRECTORY/metrics.jsonl and, where they exist, recipe.yaml, run.json and evaluation.json.
///
/// A damaged line (a crash may have cut the last one), a value that is not finite, a repeated step and another file
/// that is unreadable become warnings. Throws Error{Data} when the directory or its metrics.jsonl is missing,
/// unreadable or over 512 MiB.
Run read_run(const std::filesystem::path& directory);

}  // namespace lathe::report
