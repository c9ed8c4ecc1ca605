#pragma once

#include <cstdint>
#include <vector>

#include "lathe/base/json.h"
#include "lathe/recipe/values.h"

namespace lathe::train {

/// What an evaluation measures.
struct Evaluation {
  double eval_loss = 0;  ///< mean cross-entropy
  double accuracy = 0;
  double f1 = 0;  ///< of the last label for two classes, the mean over the classes otherwise; 0 where undefined
  int64_t samples = 0;
};

/// counts[truth][predicted].
using ConfusionCounts = std::vector<std::vector<int64_t>>;
double accuracy_of(const ConfusionCounts& counts);
double f1_of(const ConfusionCounts& counts);

/// The measure of that name; perplexity = exp(eval_loss).
double measure_of(const Evaluation& evaluation, recipe::Measure measure);
/// Whether `value` is better than `best`: lower for eval_loss and perplexity, higher for the others.
bool is_better(recipe::Measure measure, double value, double best);

}  // namespace lathe::train
