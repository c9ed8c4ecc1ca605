#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "lathe/train/classifier.h"
#include "lathe/train/task.h"

namespace lathe::train {

/// What tasks have in common whose model is a classifier: one label per sample, results as PEFT, transformers and timm
/// read them.
class ClassifierTask : public Task {
 public:
  torch::nn::Module& model() override { return *classifier_.model; }
  optim::NamedTensors trained_parameters() override { return adapters::trainable_parameters(*classifier_.model); }
  int64_t num_items(const std::vector<int64_t>& samples) const override { return static_cast<int64_t>(samples.size()); }
  const std::vector<std::string>& labels() const override { return classifier_.labels; }
  std::vector<Result> results() override;

 protected:
  ClassifierTask(const recipe::Recipe& recipe, Classifier classifier);

  Classifier classifier_;
  double label_smoothing_;
  int64_t eval_batch_size_;

 private:
  bool merged_;
};

/// Over data::TextClassificationData or data::ImageClassificationData: a part to train on and, perhaps, one to
/// evaluate.
template <typename Data>
class DataTask : public ClassifierTask {
 public:
  int64_t num_samples() const override { return data_.train.size(); }
  std::map<std::string, uint64_t> fingerprints() const override {
    std::map<std::string, uint64_t> result = {{"the training data", data_.train.fingerprint()},
                                              {"the base model", base_fingerprint_}};
    if (data_.eval) result["the evaluation data"] = data_.eval->fingerprint();
    return result;
  }
  bool has_evaluation() const override { return data_.eval.has_value(); }
  Evaluation evaluate(const std::function<bool()>& cancelled) override {
    return train::evaluate(classifier_, data_, eval_batch_size_, cancelled);
  }
  Json show(int64_t index) const override { return show_sample(data_, index); }

 protected:
  DataTask(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, Data data)
      : ClassifierTask(recipe, build_classifier(recipe, resolved, data.train.label_names())),
        data_(std::move(data)),
        base_fingerprint_(resolved.directory.fingerprint()) {}

  Data data_;

 private:
  uint64_t base_fingerprint_;
};

/// Text or image classification: opens and checks everything that `recipe` names, then builds the model.
/// Throws Error{Config}, Error{Data}.
std::unique_ptr<Task> open_classifier_task(const recipe::Recipe& recipe);

/// The two kinds of it.
std::unique_ptr<Task> open_text_task(const recipe::Recipe& recipe);
std::unique_ptr<Task> open_image_task(const recipe::Recipe& recipe);

}  // namespace lathe::train
