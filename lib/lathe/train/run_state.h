#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "lathe/optim/optimizer.h"
#include "lathe/recipe/values.h"
#include "lathe/train/run_directory.h"

namespace lathe::train {

/// The best evaluation so far by one measure.
struct Best {
  recipe::Measure measure = recipe::Measure::EvalLoss;
  double value = 0;
  int64_t step = 0;
  int64_t evaluations_since = 0;
};

/// Whether an evaluation of `step` that measured `value` is the best so far; `best` keeps it then and counts it
/// otherwise. A value that is not finite is never the best.
bool note_evaluation(std::optional<Best>& best, recipe::Measure measure, double value, int64_t step);

/// What a run knows beside its tensors. With weights and optimizer it determines everything that follows: data order,
/// dropout and schedule are functions of the step.
struct RunState {
  int64_t step = 0;                 ///< optimizer steps done
  bool evaluation_pending = false;  ///< the evaluation after `step` was due and is not done
  bool stopped_early = false;
  std::optional<Best> best;        ///< for keep_best
  std::optional<Best> early;       ///< for early_stopping
  std::vector<int64_t> nonfinite;  ///< the steps that were left out, of the last 1000
  RunDirectory::MetricsPosition metrics;
  std::map<std::string, std::string> fingerprints;  ///< of what must not change: "the training data", ...
  std::string environment;                          ///< what may change the bits: LibTorch, processor, threads

  /// The step of the weights that the run comes to: of the best evaluation, or the last.
  int64_t result_step() const { return best ? best->step : step; }
  /// Counts a step whose loss or gradient was not finite; whether so many may still be left out.
  bool note_nonfinite(int64_t nonfinite_step);

  Json to_json() const;
  /// Throws Error{Data} naming `file`.
  static RunState from_json(const Json& json, const std::string& file);
};

/// Everything that a checkpoint holds.
struct Snapshot {
  RunState state;
  optim::NamedTensors weights, optimizer;

  /// Writes trainable.safetensors, optimizer.safetensors and state.json.
  void write(const std::filesystem::path& directory) const;
  /// Reads them back. Tensors are views of the mapped files.
  static Snapshot read(const std::filesystem::path& directory);
};

/// Copies that training does not change any more.
optim::NamedTensors copies(const optim::NamedTensors& tensors);

inline constexpr const char* kWeightsFile = "trainable.safetensors";
inline constexpr const char* kOptimizerFile = "optimizer.safetensors";

}  // namespace lathe::train
