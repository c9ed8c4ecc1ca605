#include "lathe/train/classifier_task.h"

#include <ATen/ops/tensor.h>

#include <utility>

#include "lathe/nn/modules.h"
#include "lathe/train/classifier.h"
#include "lathe/train/save.h"

namespace lathe::train {
namespace {

class ClassifierTask : public Task {
 public:
  explicit ClassifierTask(const recipe::Recipe& recipe)
      : resolved_(recipe::resolve_model(recipe)),
        data_(data::open_text_classification(recipe, resolved_)),
        classifier_(build_classifier(recipe, resolved_, data_.train.label_names())),
        label_smoothing_(recipe.data.label_smoothing),
        eval_batch_size_(recipe.training.batch_size.samples.value_or(1)),
        merged_(recipe.output.merged) {}

  torch::nn::Module& model() override { return *classifier_.model; }
  optim::NamedTensors trained_parameters() override { return adapters::trainable_parameters(*classifier_.model); }
  int64_t num_samples() const override { return data_.train.size(); }
  uint64_t data_fingerprint() const override { return data_.train.fingerprint(); }
  int64_t num_items(const std::vector<int64_t>& samples) const override { return static_cast<int64_t>(samples.size()); }

  BatchLoss loss(const std::vector<int64_t>& samples, const nn::Pass& pass) override {
    BatchLoss result;
    std::vector<text::Encoding> encodings;
    std::vector<int64_t> labels;
    for (const int64_t index : samples) {
      encodings.push_back(data_.encode(data_.train, index));
      labels.push_back(data_.train.sample(index).label);
      result.tokens += static_cast<int64_t>(encodings.back().ids.size());
    }
    const at::Tensor logits = classifier_.model->forward(make_batch(encodings), pass);
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

  bool has_evaluation() const override { return data_.eval.has_value(); }
  Evaluation evaluate(const std::function<bool()>& cancelled) override {
    return train::evaluate(classifier_, data_, *data_.eval, eval_batch_size_, cancelled);
  }

  std::vector<Result> results() override {
    std::vector<Result> results;
    if (classifier_.adapter)
      results.push_back({"adapter", [this](const auto& path) { save_adapter(classifier_, path.string()); }});
    if (!classifier_.adapter || merged_)
      results.push_back({"model", [this](const auto& path) { save_model(classifier_, path.string()); }});
    return results;
  }

 private:
  recipe::ResolvedModel resolved_;
  data::TextClassificationData data_;
  Classifier classifier_;
  double label_smoothing_;
  int64_t eval_batch_size_;
  bool merged_;
};

}  // namespace

std::unique_ptr<Task> open_classifier_task(const recipe::Recipe& recipe) {
  return std::make_unique<ClassifierTask>(recipe);
}

}  // namespace lathe::train
