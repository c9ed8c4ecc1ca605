#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "lathe/data/text_classification.h"
#include "lathe/train/classifier.h"

namespace lathe::train {

/// What an evaluation of a classifier measures.
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

/// Evaluates on all of `dataset`, in order, without dropout. `cancelled` is asked between batches; when it says yes,
/// the result so far is dropped and Error{Interrupted} thrown.
Evaluation evaluate(const Classifier& classifier, const data::TextClassificationData& data,
                    const data::TextDataset& dataset, int64_t batch_size, const std::function<bool()>& cancelled);

}  // namespace lathe::train
