#include "lathe/report/page.h"

#include <algorithm>

#include "lathe/report/charts.h"
#include "lathe/report/document.h"
#include "lathe/report/evaluation.h"
#include "lathe/report/experts.h"
#include "lathe/report/memory.h"
#include "lathe/report/tables.h"

namespace lathe::report {

std::string render_page(const std::vector<Run>& runs) {
  Document page{.kind = "Lathe report", .title = runs.front().name, .heading = runs.front().name};
  if (runs.size() > 1) {
    page.title += " and " + std::to_string(runs.size() - 1) + " more";
    page.heading = std::to_string(runs.size()) + " runs compared";
  }
  page.title += " - Lathe report";
  for (size_t i = 0; i < runs.size(); ++i) page.names.push_back(run_label(runs, i));
  page.before = warnings_section(runs) + figures_section(runs);
  page.charts = make_charts(runs);
  page.without_charts = "No step has been recorded yet.";
  page.pictures = std::any_of(runs.begin(), runs.end(), [](const Run& run) { return run.evaluation.has_value(); });
  page.after = experts_section(runs) + evaluation_section(runs) + memory_section(runs) + norms_section(runs) +
               recipe_section(runs) + details_section(runs);
  return render_document(page);
}

}  // namespace lathe::report
