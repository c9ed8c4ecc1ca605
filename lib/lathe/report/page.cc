#include "lathe/report/page.h"

#include <cmath>
#include <string_view>

#include "lathe/base/json.h"
#include "lathe/base/text.h"
#include "lathe/report/assets.h"
#include "lathe/report/charts.h"
#include "lathe/report/tables.h"

namespace lathe::report {
namespace {

Json to_json(const Curve& curve) {
  constexpr const char* kKinds[] = {"raw", "line", "points", "limit"};
  Json x = Json::array(), y = Json::array();
  for (const double value : curve.series.x) x.push_back(static_cast<int64_t>(value));
  for (const double value : curve.series.y) y.push_back(std::isfinite(value) ? Json(value) : Json(nullptr));
  return {{"label", printable(curve.label)},
          {"run", curve.run},
          {"kind", kKinds[static_cast<size_t>(curve.kind)]},
          {"x", x},
          {"y", y}};
}

Json to_json(const std::vector<Run>& runs, const std::vector<Chart>& charts) {
  Json names = Json::array(), drawn = Json::array();
  for (const Run& run : runs) names.push_back(printable(run.name));
  for (const Chart& chart : charts) {
    Json curves = Json::array();
    for (const Curve& curve : chart.curves) curves.push_back(to_json(curve));
    drawn.push_back({{"id", chart.id},
                     {"y_label", printable(chart.y_label)},
                     {"bytes", chart.bytes},
                     {"from_zero", chart.from_zero},
                     {"curves", curves}});
  }
  return {{"runs", names}, {"charts", drawn}};
}

// JSON that no HTML parser takes for markup, whatever its strings hold.
std::string script_safe(const Json& json) {
  std::string safe;
  for (const char c : json.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace)) {
    if (c == '<') {
      safe += "\\u003c";
    } else if (c == '>') {
      safe += "\\u003e";
    } else if (c == '&') {
      safe += "\\u0026";
    } else {
      safe += c;
    }
  }
  return safe;
}

std::string head(const std::vector<Run>& runs) {
  std::string title = printable(runs.front().name);
  if (runs.size() > 1) title += " and " + std::to_string(runs.size() - 1) + " more";
  const auto source = [](const Asset& asset) { return "'sha256-" + std::string(asset.sha256) + "'"; };
  return "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
         "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src " +
         source(kPlotScript) + " " + source(kPageScript) + "; style-src " + source(kPageStyle) +
         "; base-uri 'none'; form-action 'none'\">\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
         "<meta name=\"color-scheme\" content=\"light dark\">\n<title>" +
         escape_html(title) + " - Lathe report</title>\n<style>" + std::string(kPageStyle.text) + "</style>\n</head>\n";
}

// The page's title, and for several runs their names as switches that show and hide them in all charts.
std::string header(const std::vector<Run>& runs) {
  std::string out = "<header>\n<p class=\"kind\">Lathe report</p>\n";
  if (runs.size() == 1) return out + "<h1>" + escape_html(printable(runs.front().name)) + "</h1>\n</header>\n";
  out += "<h1>" + std::to_string(runs.size()) + " runs compared</h1>\n<div class=\"runs\">";
  for (size_t i = 0; i < runs.size(); ++i) {
    out += "<button type=\"button\" disabled aria-pressed=\"true\" data-run=\"" + std::to_string(i) +
           "\"><span class=\"key run-" + std::to_string(i % 8) + "\"></span>" + run_name(runs, i) + "</button>";
  }
  return out + "</div>\n</header>\n";
}

std::string charts_section(const std::vector<Chart>& charts) {
  if (charts.empty()) return "<section>\n<h2>Charts</h2>\n<p>No step has been recorded yet.</p>\n</section>\n";
  std::string out =
      "<section>\n<h2>Charts</h2>\n<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>\n"
      "<p class=\"note\">Drag over a chart to zoom in on those steps in all of them, double-click to zoom out.</p>\n"
      "<div class=\"charts\">\n";
  for (const Chart& chart : charts) {
    const std::string title = escape_html(printable(chart.title));
    out += "<figure id=\"chart-" + chart.id + "\">\n<figcaption><h3>" + title + "</h3>";
    if (!chart.note.empty()) out += "<p>" + escape_html(chart.note) + "</p>";
    out += "</figcaption>\n<div class=\"plot\" role=\"img\" aria-label=\"Chart: " + title + "\"></div>\n</figure>\n";
  }
  return out + "</div>\n</section>\n";
}

}  // namespace

std::string render_page(const std::vector<Run>& runs) {
  const std::vector<Chart> charts = make_charts(runs);
  std::string out = head(runs) + "<body>\n" + header(runs) + "<main>\n" + warnings_section(runs) +
                    figures_section(runs) + charts_section(charts) + norms_section(runs) + recipe_section(runs) +
                    details_section(runs) + "</main>\n";
  out += "<script type=\"application/json\" id=\"data\">" + script_safe(to_json(runs, charts)) + "</script>\n";
  out += "<script>" + std::string(kPlotScript.text) + "</script>\n<script>" + std::string(kPageScript.text) +
         "</script>\n</body>\n</html>\n";
  return out;
}

}  // namespace lathe::report
