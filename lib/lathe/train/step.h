#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lathe/optim/optimizer.h"
#include "lathe/optim/schedule.h"
#include "lathe/recipe/recipe.h"
#include "lathe/train/balance.h"
#include "lathe/train/task.h"

namespace lathe::train {

/// One optimizer step, as metrics.jsonl has it.
struct StepMetrics {
  int64_t step = 0;      ///< from 1
  double epoch = 0;      ///< samples consumed over samples
  double loss = 0;       ///< the window's sum over its labelled items, before the update
  double lr = 0;         ///< used in this step
  double grad_norm = 0;  ///< after normalising, before clipping
  int64_t tokens = 0;    ///< without padding
  double seconds = 0;
  int64_t peak_rss_bytes = 0;
  std::optional<BalanceMetrics> balance{};  ///< of a model with experts
};

enum class StepOutcome {
  Done,
  Stopped,    ///< a stop was requested before the window was done; nothing has changed
  NonFinite,  ///< loss or gradient is not finite; weights and optimizer are untouched
};

using Window = std::vector<std::vector<int64_t>>;  ///< the samples of each micro-batch

/// Optimizer steps over windows of micro-batches:
///     loss = Σ over all items of the window / their number, whatever the split; clip; update.
/// Experts add the balance loss of the whole window to what is minimised, not to `loss`; their biases move with the
/// update.
/// Dropout masks are a function of (seed, step, micro-batch).
class Stepper {
 public:
  Stepper(Task& task, const recipe::Recipe& recipe, int64_t num_steps);

  /// Says that this will be the next step, so that the task prepares its input while the one before runs.
  void announce(int64_t step, const Window& window);
  /// `step` counts from 0.
  StepOutcome run(int64_t step, const Window& window, StepMetrics& metrics);
  /// Where the numbers of a step first go wrong: runs it again and names the first layer, in the order of the forward
  /// pass, whose output is not finite, or the first parameter whose gradient is not.
  std::string find_nonfinite(int64_t step, const Window& window);

  optim::Optimizer& optimizer() { return *optimizer_; }
  /// The trained parameters that the last window gave no gradient.
  const std::vector<std::string>& without_gradient() const { return without_gradient_; }

 private:
  /// Of the randomness of a micro-batch.
  uint64_t pass_key(int64_t step, size_t index) const;
  nn::Pass pass_of(int64_t step, size_t index) const;
  void look_ahead(int64_t step, const Window& window);
  Task::BatchLoss add_micro_batch(int64_t step, size_t index, const std::vector<int64_t>& samples, int64_t items);

  Task& task_;
  uint64_t seed_;
  double lr_, clip_grad_norm_;
  nn::LayerPolicy layers_;
  optim::Schedule schedule_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  Balance balance_;
  std::vector<std::string> without_gradient_;
};

}  // namespace lathe::train
