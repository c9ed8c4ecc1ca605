#pragma once

#include <cstdint>
#include <functional>

#include "lathe/data/image_classification.h"
#include "lathe/data/text_classification.h"
#include "lathe/train/classifier.h"
#include "lathe/train/measures.h"

namespace lathe::train {

/// Evaluates on all of data.eval, in order, without dropout or augmentation. `cancelled` is asked between batches; when
/// it says yes, the result so far is dropped and Error{Interrupted} thrown.
Evaluation evaluate(const Classifier& classifier, const data::TextClassificationData& data, int64_t batch_size,
                    const std::function<bool()>& cancelled);
Evaluation evaluate(const Classifier& classifier, const data::ImageClassificationData& data, int64_t batch_size,
                    const std::function<bool()>& cancelled);

/// What people see of an evaluated sample: its place, and its text or, as a PNG in base64, its picture as the model
/// sees it, at most 112 pixels high and wide.
Json show_sample(const data::TextClassificationData& data, int64_t index);
Json show_sample(const data::ImageClassificationData& data, int64_t index);

}  // namespace lathe::train
