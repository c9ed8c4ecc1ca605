#include "lathe/train/resume.h"

#include <filesystem>
#include <utility>
#include <vector>

#include "lathe/base/error.h"
#include "lathe/base/files.h"

namespace lathe::train {
namespace {

bool may_change(const std::string& key) {
  return key == "training.max_steps" || key == "training.epochs" || key.starts_with("output.") ||
         key.starts_with("training.keep_");
}

std::vector<std::string> changed_keys(const RunDirectory& directory, const std::string& text,
                                      const recipe::Recipe& recipe) {
  const std::string file = (directory.path() / "recipe.yaml").string();
  return recipe::changed_keys(recipe::parse(text, file, directory.path().string()), recipe);
}

}  // namespace

recipe::Recipe with_batches_of_run(const recipe::Recipe& recipe) {
  const std::string file = recipe.output.dir.resolved + "/recipe.yaml";
  if (!std::filesystem::exists(file)) return recipe;
  const recipe::Training begun = recipe::parse(read_file(file, 1 << 20), file, "").training;
  const int64_t size = begun.batch_size.samples.value_or(0);
  if (size * begun.gradient_accumulation_steps != *recipe.training.global_batch_size) return recipe;
  recipe::Recipe settled = recipe;
  settled.training.batch_size.samples = size;
  settled.training.gradient_accumulation_steps = begun.gradient_accumulation_steps;
  settled.training.global_batch_size.reset();
  return settled;
}

void write_recipe(RunDirectory& directory, const recipe::Recipe& recipe) {
  const auto before = directory.recipe_text();
  if (!before || !changed_keys(directory, *before, recipe).empty()) directory.write_recipe(recipe::to_yaml(recipe));
}

void require_recipe_of_run(const RunDirectory& directory, const recipe::Recipe& recipe) {
  const auto text = directory.recipe_text();
  if (!text) return;
  std::vector<Diagnostic> mistakes;
  for (const std::string& key : changed_keys(directory, *text, recipe)) {
    if (may_change(key)) continue;
    Diagnostic diagnostic = recipe.at(key);
    diagnostic.problem = "differs from the run that is being resumed";
    diagnostic.hint = "see " + (directory.path() / "recipe.yaml").string();
    mistakes.push_back(std::move(diagnostic));
  }
  if (!mistakes.empty()) throw Error(ErrorKind::Config, std::move(mistakes));
}

void require_same_inputs(const RunState& checkpoint, const RunState& now, const std::string& place) {
  for (const auto& [name, hash] : now.fingerprints) {
    const auto found = checkpoint.fingerprints.find(name);
    if (found == checkpoint.fingerprints.end() || found->second != hash)
      throw data_error(place, name + " has changed since this checkpoint", "start a new run");
  }
}

}  // namespace lathe::train
