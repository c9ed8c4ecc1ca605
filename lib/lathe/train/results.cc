#include "lathe/train/results.h"

#include <algorithm>
#include <exception>

#include "lathe/base/files.h"

namespace lathe::train {
namespace {

constexpr const char* kSummary = "run.json";

Json names_of(const std::vector<Task::Result>& results) {
  Json names = Json::array();
  for (const Task::Result& result : results) names.push_back(result.name);
  return names;
}

Json published(const RunState& state, const std::vector<Task::Result>& results) {
  return {{"step", state.step}, {"weights_of_step", state.result_step()}, {"results", names_of(results)}};
}

}  // namespace

bool are_published(const RunDirectory& directory, const RunState& state, const std::vector<Task::Result>& results) {
  const bool all_there = std::all_of(results.begin(), results.end(),
                                     [&](const Task::Result& result) { return directory.has(result.name); });
  if (!all_there || !directory.has(kSummary)) return false;
  try {
    const Json summary = read_json_file((directory.path() / kSummary).string(), 16 << 20);
    Json expected = published(state, results);
    // Its last checkpoint may be of before the evaluation that chose the weights.
    if (state.evaluation_pending) expected["weights_of_step"] = summary.at("published").at("weights_of_step");
    return summary.at("published") == expected;
  } catch (const std::exception&) {  // damaged, or of an unfinished run
    return false;
  }
}

void publish_results(RunDirectory& directory, const RunState& state, const std::vector<Task::Result>& results,
                     Json summary) {
  for (const Task::Result& result : results) directory.publish(result.name, result.fill);
  for (const char* name : {"adapter", "model"}) {
    const bool current =
        std::any_of(results.begin(), results.end(), [&](const Task::Result& result) { return result.name == name; });
    if (!current) directory.unpublish(name);
  }
  summary["published"] = published(state, results);
  write_file_atomically(directory.path() / kSummary, summary.dump(1) + "\n");
}

}  // namespace lathe::train
