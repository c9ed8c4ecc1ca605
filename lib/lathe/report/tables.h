#pragma once

#include <string>
#include <vector>

#include "lathe/report/run.h"

namespace lathe::report {

/// The page's parts that need no script, as HTML. Each is empty when the runs have nothing to show in it.

/// What could not be read.
std::string warnings_section(const std::vector<Run>& runs);
/// Final figures: one column per run, the best of each row marked.
std::string figures_section(const std::vector<Run>& runs);
/// run.json's adapter_norms: one bar per module and run.
std::string norms_section(const std::vector<Run>& runs);
/// The recipe; of several runs the keys that differ, then each recipe.
std::string recipe_section(const std::vector<Run>& runs);
/// run.json's planned and measured, environment and other objects, as tables of names and values.
std::string details_section(const std::vector<Run>& runs);

/// The run's name, with a number when another run has the same name.
std::string run_label(const std::vector<Run>& runs, size_t index);

}  // namespace lathe::report
