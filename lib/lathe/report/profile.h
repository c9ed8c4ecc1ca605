#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "lathe/base/json.h"

namespace lathe::report {

/// One call of an operator, of an own kernel, or one phase of a step.
struct ProfileEvent {
  size_t name = 0;   ///< index into Profile::names
  int64_t step = 0;  ///< of the run, from 1
  int64_t start_ns = 0, wall_ns = 0;
  int64_t cpu_start_ns = 0, cpu_ns = 0;  ///< of the calling thread
  // Without what the calls inside have:
  int64_t self_cpu_ns = 0;
  int64_t flops = 0;  ///< of matrix products, a multiply-add as two
  int64_t bytes = 0;  ///< every tensor that is read, once, and every one that is written, once
};

/// What one thread did in some steps. Events of a thread nest or follow one another; a step is an event of its own.
struct Profile {
  std::vector<std::string> names;
  std::vector<ProfileEvent> events;
  int64_t num_steps = 0;
  int64_t num_threads = 1;  ///< that the operators could use
};

/// What the machine can do, as `lathe doctor` has measured it.
struct MachinePeak {
  double flops_per_second = 0;
  double bytes_per_second = 0;

  /// Reads ${cache}/machine.json; nothing when it is absent or says nothing.
  static std::optional<MachinePeak> read(const std::string& file);
};

/// The events as a Chrome trace (Trace Event Format), which chrome://tracing and Perfetto open.
std::string chrome_trace(const Profile& profile);

/// The sum of all events of one name.
struct OperatorRow {
  std::string name;
  int64_t calls = 0, self_cpu_ns = 0, flops = 0, bytes = 0;
};

/// One row per name, the most time first.
std::vector<OperatorRow> operator_rows(const Profile& profile);

/// The rows as lines of a table with rates and shares, at most `max_rows` of them, the rest in one line, then a sum.
std::vector<std::string> operator_table(const Profile& profile, const std::optional<MachinePeak>& peak,
                                        size_t max_rows);

/// Writes trace.json (the trace) and operators.txt (the whole table) into an existing directory.
void write_profile(const Profile& profile, const std::optional<MachinePeak>& peak,
                   const std::filesystem::path& directory);

}  // namespace lathe::report
