#include "lathe/report/run.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string_view>
#include <system_error>

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/text.h"

namespace lathe::report {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxMetricsBytes = uint64_t{512} << 20;
constexpr uint64_t kMaxRecipeBytes = uint64_t{1} << 20;
constexpr uint64_t kMaxDetailsBytes = uint64_t{16} << 20;
constexpr size_t kMaxColumns = 64;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::string counted(size_t count, const std::string& one, const std::string& many) {
  return std::to_string(count) + " " + (count == 1 ? one : many);
}

// Collects the lines of metrics.jsonl.
class MetricsReader {
 public:
  MetricsReader(std::string file, Run& run) : file_(std::move(file)), run_(run) {}

  void read(std::string_view text) {
    for (int number = 1; !text.empty(); ++number) {
      const size_t end = std::min(text.find('\n'), text.size());
      std::string_view line = text.substr(0, end);
      text.remove_prefix(std::min(end + 1, text.size()));
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (!line.empty()) add_line(line, number);
    }
    finish();
  }

 private:
  void add_line(std::string_view line, int number) {
    try {
      const Json json = parse_json(line, file_, {.max_depth = 8}, number);
      const JsonObject object(json, file_);
      const auto step = static_cast<double>(object.integer("step", 0, int64_t{1} << 53));
      const bool evaluation = json.contains("eval_loss");
      if (!evaluation) run_.loads.add(step, object);
      add_row(evaluation ? run_.evaluations : run_.steps, step, json);
    } catch (const Error& error) {
      if (damaged_++ == 0) first_damage_ = std::to_string(number) + " (" + error.diagnostics().front().problem + ")";
    }
  }

  void add_row(MetricTable& table, double step, const Json& json) {
    const size_t row = table.step.size();
    table.step.push_back(step);
    for (auto& [name, values] : table.columns) values.push_back(kNaN);
    for (const auto& [name, value] : json.items()) {
      if (name == "step" || !(value.is_number() || value.is_null())) continue;
      auto found = std::find_if(table.columns.begin(), table.columns.end(),
                                [&name = name](const auto& column) { return column.first == name; });
      if (found == table.columns.end()) {
        if (table.columns.size() == kMaxColumns) continue;
        found = table.columns.insert(found, {name, std::vector<double>(row + 1, kNaN)});
      }
      if (value.is_number() && std::isfinite(value.get<double>())) {
        found->second[row] = value.get<double>();
      } else if (non_finite_++ == 0) {
        first_non_finite_ = name + " at step " + std::to_string(static_cast<int64_t>(step));
      }
    }
  }

  // Ascending steps; of lines with the same step the last one counts.
  void order(MetricTable& table) {
    const auto falls = [](double a, double b) { return a >= b; };
    if (std::adjacent_find(table.step.begin(), table.step.end(), falls) == table.step.end()) return;
    std::vector<size_t> rows(table.step.size());
    std::iota(rows.begin(), rows.end(), size_t{0});
    std::stable_sort(rows.begin(), rows.end(), [&](size_t a, size_t b) { return table.step[a] < table.step[b]; });
    std::vector<size_t> kept;
    for (const size_t row : rows) {
      if (!kept.empty() && table.step[kept.back()] == table.step[row]) kept.pop_back();
      kept.push_back(row);
    }
    repeated_ += rows.size() - kept.size();
    const auto permute = [&kept](std::vector<double>& values) {
      std::vector<double> ordered;
      ordered.reserve(kept.size());
      for (const size_t row : kept) ordered.push_back(values[row]);
      values = std::move(ordered);
    };
    permute(table.step);
    for (auto& column : table.columns) permute(column.second);
  }

  void finish() {
    order(run_.steps);
    order(run_.evaluations);
    if (damaged_ > 0)
      warn(counted(damaged_, "damaged line is", "damaged lines are") + " left out, the first is line " + first_damage_);
    if (non_finite_ > 0)
      warn(counted(non_finite_, "value is", "values are") + " not finite, the first is " + first_non_finite_);
    if (repeated_ > 0)
      warn(counted(repeated_, "line repeats", "lines repeat") + " a step: the last line of a step is shown");
  }
  void warn(const std::string& what) { run_.warnings.push_back("metrics.jsonl: " + what); }

  std::string file_;
  Run& run_;
  size_t damaged_ = 0, non_finite_ = 0, repeated_ = 0;
  std::string first_damage_, first_non_finite_;
};

// Reads a file that may be absent; what is wrong with it becomes a warning.
template <typename Read>
void read_optional(const fs::path& path, Run& run, Read&& read) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return;
  try {
    read(path);
  } catch (const Error& error) {
    Diagnostic diagnostic = error.diagnostics().front();
    diagnostic.file = path.filename().string();
    run.warnings.push_back(diagnostic.to_string());
  }
}

std::string directory_name(const fs::path& directory) {
  const fs::path normal = fs::absolute(directory).lexically_normal();
  return (normal.has_filename() ? normal : normal.parent_path()).filename().string();
}

}  // namespace

const std::vector<double>* MetricTable::find(const std::string& name) const {
  for (const auto& [column, values] : columns) {
    if (column == name) return &values;
  }
  return nullptr;
}

Run read_run(const fs::path& directory) {
  const fs::path metrics = directory / "metrics.jsonl";
  std::error_code error;
  if (!fs::exists(metrics, error)) {
    if (error && error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory)
      throw data_error(directory.string(), "cannot be opened: " + error.message());
    if (!fs::is_directory(directory, error)) throw data_error(directory.string(), "no such run directory");
    throw data_error(directory.string(), "not a run directory: no metrics.jsonl", "name the recipe's output.dir");
  }
  Run run;
  run.name = directory_name(directory);
  run.details = Json::object();
  MetricsReader(metrics.string(), run).read(read_file(metrics, kMaxMetricsBytes));
  read_optional(directory / "recipe.yaml", run,
                [&run](const fs::path& path) { run.recipe = read_file(path, kMaxRecipeBytes); });
  read_optional(directory / "run.json", run, [&run](const fs::path& path) {
    Json details = read_json_file(path.string(), kMaxDetailsBytes);
    run.details = JsonObject(details, path.string()).json();
  });
  read_optional(directory / "evaluation.json", run, [&run](const fs::path& path) {
    run.evaluation = read_class_evaluation(read_json_file(path.string(), kMaxDetailsBytes), path.string());
  });
  return run;
}

}  // namespace lathe::report
