#pragma once

#include <vector>

#include "lathe/base/json.h"
#include "lathe/train/run_directory.h"
#include "lathe/train/run_state.h"
#include "lathe/train/task.h"

namespace lathe::train {

/// Whether the directory holds just these results, of just this state. run.json says so: it is written last.
bool are_published(const RunDirectory& directory, const RunState& state, const std::vector<Task::Result>& results);

/// Publishes the results of `state`, removes those of before that the recipe no longer asks for, and writes run.json:
/// `summary` and what was published.
void publish_results(RunDirectory& directory, const RunState& state, const std::vector<Task::Result>& results,
                     Json summary);

}  // namespace lathe::train
