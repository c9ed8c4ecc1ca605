#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lathe/data/windows.h"
#include "lathe/optim/optimizer.h"
#include "lathe/optim/schedule.h"
#include "lathe/train/classifier.h"
#include "lathe/train/evaluate.h"
#include "lathe/train/run_directory.h"

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
};

/// What a program shows of a run while it goes. All calls come from the training thread.
class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void on_start(int64_t /*first_step*/, int64_t /*num_steps*/) {}
  virtual void on_step(const StepMetrics&) {}
  virtual void on_evaluation(int64_t /*step*/, const Evaluation&) {}
  virtual void on_warning(const std::string&) {}
};

/// One optimizer step over a window of micro-batches:
///     loss = Σ over all items of the window / their number, whatever the split; clip; update.
/// Dropout masks are a function of (seed, step, micro-batch). Leaves weights and optimizer untouched when the loss or a
/// gradient is not finite, and throws Error{Numeric} naming the step.
class ClassifierStepper {
 public:
  ClassifierStepper(Classifier& classifier, const data::TextClassificationData& data, const recipe::Recipe& recipe,
                    int64_t num_steps);

  /// `step` counts from 0. Returns false, with nothing changed, when a stop was requested before the window was done.
  bool run(int64_t step, const std::vector<std::vector<int64_t>>& window, StepMetrics& metrics);
  optim::Optimizer& optimizer() { return *optimizer_; }

 private:
  double add_micro_batch(const std::vector<int64_t>& samples, uint64_t key, double scale, int64_t& tokens);

  Classifier& classifier_;
  const data::TextClassificationData& data_;
  uint64_t seed_;
  double lr_, clip_grad_norm_, label_smoothing_;
  optim::Schedule schedule_;
  std::unique_ptr<optim::Optimizer> optimizer_;
};

/// Trains a text classifier as `recipe` says, into its run directory: metrics, checkpoints, the adapter or model at the
/// end. Everything that can be checked is checked before the run directory is made. With `resume` it goes on from the
/// newest whole checkpoint, bit for bit. Throws Error; Interrupted when stopped by a signal, after a checkpoint was
/// written.
void train_classifier(const recipe::Recipe& recipe, bool resume, TrainObserver& observer);

}  // namespace lathe::train
