#include <filesystem>
#include <vector>

#include "console.h"
#include "lathe/base/files.h"
#include "lathe/base/text.h"
#include "lathe/report/document.h"
#include "lathe/report/page.h"
#include "lathe/report/run.h"
#include "verbs.h"

namespace lathe::app {

int run_report(const CommandLine& line) {
  std::vector<lathe::report::Run> runs;
  for (const std::string& directory : line.runs) {
    runs.push_back(lathe::report::read_run(directory));
    for (const std::string& warning : runs.back().warnings) print_warning(directory + ": " + warning);
  }
  // A page in a run is replaced by the next, and nothing else there.
  if (std::filesystem::path(line.out).extension() != ".html") require_no_input(line.out, line.runs);
  if (!line.out.empty()) require_replaceable(line.out, ".html", lathe::report::kPageMark);
  const std::filesystem::path page =
      line.out.empty() ? std::filesystem::path(line.runs.front()) / "report.html" : std::filesystem::path(line.out);
  write_file_atomically(page, lathe::report::render_page(runs));
  print_result(printable(page.string()) + "\n");
  return 0;
}

}  // namespace lathe::app
