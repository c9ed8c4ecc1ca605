#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "lathe/cost/ops.h"
#include "lathe/recipe/recipe.h"

namespace lathe::train {

/// What one optimizer step of a recipe really takes.
struct MeasuredStep {
  int64_t peak_bytes = 0;  ///< live in LibTorch's CPU allocator, plus mapped weights: what a plan foretells
  /// The same of forward, backward (with the optimizer) and, where there is one, evaluation.
  std::vector<std::pair<std::string, int64_t>> phase_peaks{};
  int64_t weight_bytes = 0;      ///< after loading, mapped or allocated
  int64_t optimizer_bytes = 0;   ///< its state
  int64_t gradient_bytes = 0;    ///< of the parameters that get one
  int64_t checkpoint_bytes = 0;  ///< the copies that were held during the second step, where a run would take some
  int64_t activation_bytes = 0;  ///< kept after the forward pass of the last micro-batch
  int64_t peak_rss_bytes = 0;    ///< of the process
  int64_t base_bytes = 0;        ///< of the process before the model was built
  int64_t flops = 0;             ///< of the products of a step: those that LibTorch's operators and own kernels count
  // Of each layer with experts:
  std::vector<cost::ExpertLoad> loads{};          ///< at most, in the steps whose memory was measured
  std::vector<cost::ExpertLoad> counted_loads{};  ///< in the step whose operations were counted
  double seconds = 0;                             ///< of the second step: the first one warms up
  double micro_batch_seconds = 0;                 ///< the same by micro-batches
};

/// Builds the model of a recipe without open choices and runs two steps on made-up samples, all as long as the recipe
/// allows: the batch that a plan reckons with; then an evaluation, where there is one; and a third step under the
/// profiler, which counts operations. Neither the data nor the run directory is touched.
MeasuredStep measure_step(const recipe::Recipe& recipe);

}  // namespace lathe::train
