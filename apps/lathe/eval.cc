#include <filesystem>

#include "console.h"
#include "lathe/base/files.h"
#include "lathe/base/json.h"
#include "lathe/train/evaluate.h"
#include "texts.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

namespace fs = std::filesystem;

// A run: what it published, on its recipe's data.eval unless that is overridden.
recipe::Recipe recipe_of_run(const CommandLine& line) {
  const fs::path file = fs::path(line.recipe) / "recipe.yaml";
  return recipe::load(file.string(), line.overrides);
}

train::Classifier classifier_of_run(const fs::path& run, const recipe::Recipe& recipe) {
  if (fs::exists(run / "adapter"))
    return train::load_classifier(recipe.model.path.resolved, (run / "adapter").string(), recipe.model.dtype,
                                  recipe.model.compute, recipe.quant);
  if (fs::exists(run / "model"))
    return train::load_classifier((run / "model").string(), "", recipe.model.dtype, recipe.model.compute);
  throw data_error(run.string(), "has published nothing yet",
                   "let lathe train finish, with --resume if it was stopped");
}

}  // namespace

int run_eval(const CommandLine& line) {
  const bool is_run = fs::is_directory(line.recipe) && fs::exists(fs::path(line.recipe) / "recipe.yaml");
  const recipe::Recipe recipe = is_run ? recipe_of_run(line) : recipe::load(line.recipe, line.overrides);
  const recipe::ResolvedModel resolved = recipe::resolve_model(recipe);
  const train::Classifier classifier =
      is_run
          ? classifier_of_run(line.recipe, recipe)
          : train::load_classifier(recipe.model.path.resolved, recipe.adapter.from ? recipe.adapter.from->resolved : "",
                                   recipe.model.dtype, recipe.model.compute, recipe.quant);
  const data::TextClassificationData data = data::open_evaluation(recipe, resolved, classifier.labels);
  const train::Evaluation result =
      train::evaluate(classifier, data, *data.eval, static_cast<int64_t>(kInferenceBatchSize), {});
  const Json json = {
      {"eval_loss", result.eval_loss}, {"accuracy", result.accuracy}, {"f1", result.f1}, {"samples", result.samples}};
  if (line.json) {
    print_result(json.dump() + "\n");
  } else {
    for (const auto& [key, value] : json.items()) print_result(key + ": " + value.dump() + "\n");
  }
  return 0;
}

}  // namespace lathe::app
