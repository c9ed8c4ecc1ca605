#include <optional>

#include "console.h"
#include "lathe/data/image_classification.h"
#include "lathe/data/text_classification.h"
#include "lathe/recipe/resolve.h"
#include "verbs.h"

namespace lathe::app {

namespace {

struct SampleCounts {
  int64_t train;
  std::optional<int64_t> eval;
};

SampleCounts read_texts(const recipe::Recipe& recipe, const recipe::ResolvedModel& model) {
  const data::TextClassificationData data = data::open_text_classification(recipe, model);
  for (int64_t i = 0; i < data.train.size(); ++i) {
    if (data.train.is_tokens()) data.encode(data.train, i);
  }
  return {data.train.size(), data.eval ? std::optional(data.eval->size()) : std::nullopt};
}

SampleCounts read_images(const recipe::Recipe& recipe, const recipe::ResolvedModel& model) {
  const data::ImageClassificationData data = data::open_image_classification(recipe, model);
  return {data.train.size(), data.eval ? std::optional(data.eval->size()) : std::nullopt};
}

}  // namespace

int run_validate(const CommandLine& line) {
  const recipe::Recipe recipe = recipe::load(line.recipe, line.overrides);
  const recipe::ResolvedModel model = recipe::resolve_model(recipe);
  std::string summary = line.recipe + ": valid; " + std::to_string(model.directory.tensors().size()) + " tensors, ";
  summary += model.adapter ? std::to_string(model.targets.size()) + " layers adapted" : "every weight trained";
  if (line.data) {
    const SampleCounts counts =
        arch::sees_images(model.config.arch) ? read_images(recipe, model) : read_texts(recipe, model);
    summary += ", " + std::to_string(counts.train) + " training samples";
    if (counts.eval) summary += ", " + std::to_string(*counts.eval) + " evaluation samples";
  }
  print_result(summary + "\n");
  return 0;
}

}  // namespace lathe::app
