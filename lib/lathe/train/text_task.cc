#include <ATen/ops/tensor.h>

#include <utility>

#include "lathe/nn/modules.h"
#include "lathe/train/classifier_task.h"

namespace lathe::train {
namespace {

class TextTask : public DataTask<data::TextClassificationData> {
 public:
  TextTask(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, data::TextClassificationData data)
      : DataTask(recipe, resolved, std::move(data)) {}

  BatchLoss loss(const std::vector<int64_t>& samples, const nn::Pass& pass) override {
    BatchLoss result;
    std::vector<text::Encoding> encodings;
    std::vector<int64_t> labels;
    for (const int64_t index : samples) {
      encodings.push_back(data_.encode(data_.train, index));
      labels.push_back(data_.train.sample(index).label);
      result.tokens += static_cast<int64_t>(encodings.back().ids.size());
    }
    const Tensor logits = classifier_.texts().forward(make_batch(encodings), pass);
    result.sum = nn::cross_entropy_sum(logits, at::tensor(labels, at::kLong), label_smoothing_);
    return result;
  }

  Json describe(const std::vector<int64_t>& samples) const override {
    Json rows = Json::array();
    for (const int64_t index : samples) {
      const data::TextSample& sample = data_.train.sample(index);
      rows.push_back({{"file", data_.train.files()[static_cast<size_t>(sample.file)]},
                      {"line", sample.line},
                      {"label", data_.train.label_names()[static_cast<size_t>(sample.label)]},
                      {"input_ids", data_.encode(data_.train, index).ids}});
    }
    return rows;
  }
};

}  // namespace

std::unique_ptr<Task> open_text_task(const recipe::Recipe& recipe) {
  const recipe::ResolvedModel resolved = recipe::resolve_model(recipe);
  return std::make_unique<TextTask>(recipe, resolved, data::open_text_classification(recipe, resolved));
}

}  // namespace lathe::train
