#include "console.h"
#include "lathe/base/files.h"
#include "lathe/base/text.h"
#include "lathe/recipe/recipe.h"
#include "verbs.h"

namespace lathe::app {
namespace {

const recipe::ReadyRecipe& ready_recipe(const std::string& name) {
  if (const recipe::ReadyRecipe* found = recipe::find_ready_recipe(name)) return *found;
  std::vector<std::string> names;
  for (const recipe::ReadyRecipe& ready : recipe::ready_recipes()) names.push_back(ready.name);
  throw Error(ErrorKind::Config, Diagnostic{name, 0, 0, "", "no ready recipe of that name", suggest(name, names)});
}

}  // namespace

int run_ls(const CommandLine&) {
  for (const recipe::ReadyRecipe& ready : recipe::ready_recipes()) {
    print_result(ready.name + std::string(ready.name.size() < 24 ? 24 - ready.name.size() : 0, ' ') + "  " +
                 ready.purpose + "\n");
  }
  return 0;
}

int run_show(const CommandLine& line) {
  if (line.schema == !line.recipe.empty()) {
    throw Error(ErrorKind::Config, Diagnostic{"lathe show", 0, 0, "", "expected the name of a ready recipe or --schema",
                                              "lathe ls lists the names"});
  }
  print_result(line.schema ? recipe::schema() : ready_recipe(line.recipe).text);
  return 0;
}

int run_cp(const CommandLine& line) {
  const recipe::ReadyRecipe& ready = ready_recipe(line.recipe);
  require_absent(line.destination);
  write_file_atomically(line.destination, ready.text);
  return 0;
}

}  // namespace lathe::app
