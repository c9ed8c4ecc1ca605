#include "console.h"
#include "lathe/data/text_classification.h"
#include "lathe/recipe/resolve.h"
#include "verbs.h"

namespace lathe::app {

int run_validate(const CommandLine& line) {
  const recipe::Recipe recipe = recipe::load(line.recipe, line.overrides);
  const recipe::ResolvedModel model = recipe::resolve_model(recipe);
  std::string summary = line.recipe + ": valid; " + std::to_string(model.directory.tensors().size()) + " tensors, ";
  summary += model.adapter ? std::to_string(model.targets.size()) + " layers adapted" : "every weight trained";
  if (line.data) {
    const data::TextClassificationData data = data::open_text_classification(recipe, model);
    for (int64_t i = 0; i < data.train.size(); ++i) {
      if (data.train.is_tokens()) data.encode(data.train, i);
    }
    summary += ", " + std::to_string(data.train.size()) + " training samples";
    if (data.eval) summary += ", " + std::to_string(data.eval->size()) + " evaluation samples";
  }
  print_result(summary + "\n");
  return 0;
}

}  // namespace lathe::app
