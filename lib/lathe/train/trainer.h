#pragma once

#include <string>

#include "lathe/recipe/recipe.h"
#include "lathe/train/measures.h"
#include "lathe/train/step.h"

namespace lathe::train {

/// What a program shows of a run while it goes. All calls come from the training thread.
class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void on_start(int64_t /*first_step*/, int64_t /*num_steps*/) {}
  virtual void on_step(const StepMetrics&) {}
  virtual void on_evaluation(int64_t /*step*/, const Evaluation&) {}
  virtual void on_note(const std::string&) {}
  virtual void on_warning(const std::string&) {}
};

/// Trains as `recipe` says, into its run directory: metrics, checkpoints, the adapter or model at the end. Everything
/// that can be checked is checked before the run directory is made. With `resume` it goes on from the newest whole
/// checkpoint, bit for bit. With `profile_steps` the steps after the first one of this process, so many of them, are
/// recorded into profile/, and the run goes on. Throws Error; Interrupted when stopped by a signal, after a checkpoint
/// was written.
void train(const recipe::Recipe& recipe, bool resume, TrainObserver& observer, int64_t profile_steps = 0);

}  // namespace lathe::train
