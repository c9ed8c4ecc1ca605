#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "console.h"
#include "inference.h"
#include "lathe/base/files.h"
#include "lathe/base/json.h"
#include "lathe/base/text.h"
#include "lathe/train/evaluate.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

namespace fs = std::filesystem;

// A run: what it published, on its recipe's data.eval unless that is overridden.
recipe::Recipe recipe_of_run(const CommandLine& line) {
  const fs::path file = fs::path(line.recipe) / "recipe.yaml";
  recipe::Recipe recipe = recipe::load(file.string(), line.overrides);
  const std::vector<std::string> read = {"data",        "quant",         "model.path",
                                         "model.dtype", "model.compute", "model.max_length"};
  for (const std::string& argument : line.overrides) {
    const std::string key = argument.substr(argument.starts_with('~') ? 1 : 0, argument.find('=')) + ".";
    if (std::any_of(read.begin(), read.end(), [&](const std::string& known) { return key.starts_with(known + "."); }))
      continue;
    throw Error(ErrorKind::Config,
                Diagnostic{"override", 0, 0, "", quote(argument) + " changes nothing in a finished run",
                           "what counts: " + join(read, ", ")});
  }
  return recipe;
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

train::Evaluation evaluate(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                           const train::Classifier& classifier, bool is_run) {
  const auto batch_size = static_cast<int64_t>(kInferenceBatchSize);
  if (classifier.image) {
    const arch::ImageInput& input = is_run ? *classifier.image : *resolved.config.image;
    const auto data = data::open_image_evaluation(recipe, classifier.arch, input, classifier.labels);
    return train::evaluate(classifier, data, batch_size, {});
  }
  return train::evaluate(classifier, data::open_evaluation(recipe, resolved, classifier.labels), batch_size, {});
}

// Each class with its accuracy and what it is taken for most often.
void print_classes(const train::Evaluation& result, const std::vector<std::string>& labels) {
  for (size_t truth = 0; truth < labels.size(); ++truth) {
    std::vector<int64_t> counts = result.confusion[truth];
    const int64_t samples = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    std::string text = "  " + printable(labels[truth]) + ": " + std::to_string(counts[truth]) + " of " +
                       std::to_string(samples) + " right";
    counts[truth] = 0;
    const auto most = std::max_element(counts.begin(), counts.end());
    if (*most > 0)
      text +=
          ", " + std::to_string(*most) + " taken for " + printable(labels[static_cast<size_t>(most - counts.begin())]);
    print_result(text + "\n");
  }
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
  const train::Evaluation result = evaluate(recipe, resolved, classifier, is_run);
  if (!std::isfinite(result.eval_loss)) {
    throw Error(ErrorKind::Numeric, Diagnostic{line.recipe, 0, 0, "", "has a loss that is not finite",
                                               "lathe inspect shows its tensors; was the training stable?"});
  }
  Json json = train::to_json(result);
  json["samples"] = result.samples;
  if (line.json) {
    json.update(train::classes_to_json(result, classifier.labels));
    print_result(json.dump() + "\n");
    return 0;
  }
  for (const auto& [key, value] : json.items()) print_result(key + ": " + value.dump() + "\n");
  if (classifier.image) print_classes(result, classifier.labels);
  return 0;
}

}  // namespace lathe::app
