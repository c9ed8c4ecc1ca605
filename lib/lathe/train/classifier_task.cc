#include "lathe/train/classifier_task.h"

#include "lathe/train/save.h"

namespace lathe::train {

ClassifierTask::ClassifierTask(const recipe::Recipe& recipe, Classifier classifier)
    : classifier_(std::move(classifier)),
      label_smoothing_(recipe.data.label_smoothing),
      eval_batch_size_(recipe.training.batch_size.samples.value_or(1)),
      merged_(recipe.output.merged) {}

std::vector<Task::Result> ClassifierTask::results() {
  std::vector<Result> results;
  if (classifier_.adapter)
    results.push_back({"adapter", [this](const auto& path) { save_adapter(classifier_, path.string()); }});
  if (!classifier_.adapter || merged_)
    results.push_back({"model", [this](const auto& path) { save_model(classifier_, path.string()); }});
  return results;
}

std::unique_ptr<Task> open_classifier_task(const recipe::Recipe& recipe) {
  return recipe.model.task == recipe::Task::ImageClassification ? open_image_task(recipe) : open_text_task(recipe);
}

}  // namespace lathe::train
