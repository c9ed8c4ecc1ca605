#include <exception>
#include <map>
#include <string>

#include "console.h"
#include "lathe/recipe/recipe.h"
#include "verbs.h"

namespace lathe::app {
namespace {

int run(const CommandLine& line, char** argv) {
  static const std::map<std::string, int (*)(const CommandLine&)> kVerbs = {{"ls", run_ls},
                                                                            {"show", run_show},
                                                                            {"cp", run_cp},
                                                                            {"validate", run_validate},
                                                                            {"tokenize", run_tokenize},
                                                                            {"inspect", run_inspect},
                                                                            {"doctor", run_doctor},
                                                                            {"report", run_report},
                                                                            {"plan", run_plan}};
  const auto found = kVerbs.find(line.verb);
  if (found != kVerbs.end() && !line.measure) return found->second(line);
  if (line.verb == "train")
    recipe::load(line.recipe, line.overrides);  // a mistake in the recipe need not wait for LibTorch
  return hand_over(argv);
}

}  // namespace
}  // namespace lathe::app

int main(int argc, char** argv) {
  lathe::app::prepare_process();
  lathe::app::CommandLine line;
  if (const auto code = lathe::app::parse_command_line(argc, argv, line)) return *code;
  return lathe::app::run_reporting([&] { return lathe::app::run(line, argv); });
}
