#pragma once

#include <cstdint>
#include <functional>

#include "lathe/data/text_classification.h"
#include "lathe/train/classifier.h"
#include "lathe/train/measures.h"

namespace lathe::train {

/// Evaluates on all of `dataset`, in order, without dropout. `cancelled` is asked between batches; when it says yes,
/// the result so far is dropped and Error{Interrupted} thrown.
Evaluation evaluate(const Classifier& classifier, const data::TextClassificationData& data,
                    const data::TextDataset& dataset, int64_t batch_size, const std::function<bool()>& cancelled);

}  // namespace lathe::train
