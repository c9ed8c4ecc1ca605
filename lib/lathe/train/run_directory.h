#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lathe/base/files.h"
#include "lathe/base/json.h"

namespace lathe::train {

/// A checkpoint that is whole: its manifest's sizes and checksums hold.
struct CheckpointPlace {
  int64_t step = 0;
  std::filesystem::path path;
};

/// A run's directory: recipe.yaml, metrics.jsonl, checkpoints/step-N/, adapter/ or model/, lock. Held by one process at
/// a time.
class RunDirectory {
 public:
  /// Throws Error{Config} when the directory holds anything and `resume` is false, or when another process holds it.
  RunDirectory(const std::string& path, bool resume);

  const std::filesystem::path& path() const { return path_; }

  /// Under a line that tells it from a recipe that somebody wrote.
  void write_recipe(const std::string& yaml);
  /// The recipe that the run was started with, if there is one.
  std::optional<std::string> recipe_text() const;

  /// Appends one line to metrics.jsonl. Where that fails (a full disk) the line waits in memory for the next call and
  /// the reason is returned; nothing in the file is torn.
  std::string append_metrics(const Json& line);
  /// Tries again to write the lines that wait.
  std::string flush_metrics();
  /// How much of metrics.jsonl a checkpoint counts on, and the lines that wait.
  struct MetricsPosition {
    uint64_t bytes = 0;
    std::string waiting;
  };
  const MetricsPosition& metrics_position() const { return metrics_; }
  /// Cuts metrics.jsonl to what a checkpoint knew. Returns false when the file is shorter than that.
  bool rewind_metrics(const MetricsPosition& position);

  /// Publishes checkpoints/step-N atomically: `fill` writes the files, a manifest with sizes and checksums is added.
  /// A whole checkpoint of that step is left as it is.
  void publish_checkpoint(int64_t step, const std::function<void(const std::filesystem::path&)>& fill);
  /// Removes all whole checkpoints but the newest `keep` and that of step `spared`.
  void prune_checkpoints(int64_t keep, int64_t spared);
  std::filesystem::path checkpoint_path(int64_t step) const;
  /// Whether the checkpoint of that step is there and its manifest verifies.
  bool has_whole_checkpoint(int64_t step) const;
  /// Gives a damaged checkpoint a name under which it is no longer found.
  static void set_aside(const std::filesystem::path& checkpoint);
  /// Brings metrics.jsonl to the disk: a checkpoint counts on its lines.
  void sync_metrics() const;
  /// The newest checkpoint whose manifest verifies; damaged ones are passed over and named in `damaged`.
  std::optional<CheckpointPlace> newest_checkpoint(std::vector<std::string>& damaged) const;

  /// Publishes a directory of results (adapter, model); an older one gives way when the new one is whole.
  void publish(const std::string& name, const std::function<void(const std::filesystem::path&)>& fill);
  void unpublish(const std::string& name);
  bool has(const std::string& name) const { return std::filesystem::exists(path_ / name); }

 private:
  std::filesystem::path path_;
  std::unique_ptr<FileLock> lock_;
  MetricsPosition metrics_;
};

}  // namespace lathe::train
