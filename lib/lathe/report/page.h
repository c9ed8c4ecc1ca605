#pragma once

#include <string>
#include <vector>

#include "lathe/report/run.h"

namespace lathe::report {

/// One self-contained HTML page about one run, or several compared: a table of final figures that needs no script,
/// charts, classes and mistakes, adapter norms, recipes (several: what differs), plan and environment.
///
/// The page loads nothing: its policy allows the two inline scripts and the one style by their hashes, and pictures
/// that it holds itself. Text from files is escaped, control characters are shown as \xNN. Equal runs give equal bytes.
/// Needs at least one run.
std::string render_page(const std::vector<Run>& runs);

}  // namespace lathe::report
