#include "lathe/report/document.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "lathe/base/json.h"
#include "lathe/base/text.h"
#include "lathe/report/assets.h"

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

Json to_json(const Document& document) {
  Json names = Json::array(), drawn = Json::array();
  for (const std::string& name : document.names) names.push_back(printable(name));
  for (const Chart& chart : document.charts) {
    Json curves = Json::array();
    for (const Curve& curve : chart.curves) curves.push_back(to_json(curve));
    drawn.push_back({{"id", chart.id},
                     {"x_label", printable(chart.x_label)},
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

std::string head(const Document& document) {
  const auto source = [](const Asset& asset) { return "'sha256-" + std::string(asset.sha256) + "'"; };
  return "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n" + std::string(kPageMark) +
         "\n"
         "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src " +
         source(kPlotScript) + " " + source(kPageScript) + "; style-src " + source(kPageStyle) +
         (document.pictures ? "; img-src data:" : "") +
         "; base-uri 'none'; form-action 'none'\">\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
         "<meta name=\"color-scheme\" content=\"light dark\">\n<title>" +
         html(document.title) + "</title>\n<style>" + std::string(kPageStyle.text) + "</style>\n</head>\n";
}

std::string header(const Document& document) {
  return "<header>\n<p class=\"kind\">" + html(document.kind) + "</p>\n<h1>" + html(document.heading) + "</h1>\n" +
         (document.charts_in_text ? "" : name_switches(document.names)) + "</header>\n";
}

std::string charts_section(const Document& document) {
  if (document.charts_in_text) return "";
  if (document.charts.empty()) {
    if (document.without_charts.empty()) return "";
    return "<section>\n<h2>Charts</h2>\n<p>" + html(document.without_charts) + "</p>\n</section>\n";
  }
  return "<section>\n<h2>Charts</h2>\n" + chart_figures(document.charts) + "</section>\n";
}

// One row of a map: neighbours of equal shade are one rectangle, what is empty has none.
std::string heat_row(const HeatMap& map, size_t row) {
  const auto shade = [&](size_t column) {
    return static_cast<int>(std::lround(50 * std::clamp(map.columns[column][row], 0.0, 1.0)));
  };
  std::string out;
  for (size_t begin = 0, end = 0; begin < map.columns.size(); begin = end) {
    while (end < map.columns.size() && shade(end) == shade(begin)) ++end;
    if (shade(begin) == 0) continue;
    char opacity[16];
    std::snprintf(opacity, sizeof(opacity), "%g", shade(begin) / 50.0);
    out += "<rect x=\"" + std::to_string(begin) + "\" y=\"" + std::to_string(row) + "\" width=\"" +
           std::to_string(end - begin) + "\" height=\"1\" fill-opacity=\"" + opacity + "\"/>";
  }
  return out;
}

}  // namespace

std::string html(std::string_view text) { return escape_html(printable(text)); }

std::string render_document(const Document& document) {
  std::string out = head(document) + "<body>\n" + header(document) + "<main>\n" + document.before +
                    charts_section(document) + document.after + "</main>\n";
  out += "<script type=\"application/json\" id=\"data\">" + script_safe(to_json(document)) + "</script>\n";
  out += "<script>" + std::string(kPlotScript.text) + "</script>\n<script>" + std::string(kPageScript.text) +
         "</script>\n</body>\n</html>\n";
  return out;
}

std::string chart_figures(const std::vector<Chart>& charts) {
  if (charts.empty()) return "";
  std::string out =
      "<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>\n"
      "<p class=\"note\">Drag over a chart to zoom in on that stretch in all of them, double-click to zoom out.</p>\n"
      "<div class=\"charts\">\n";
  for (const Chart& chart : charts) {
    const std::string title = html(chart.title);
    out += "<figure id=\"chart-" + chart.id + "\">\n<figcaption><h3>" + title + "</h3>";
    if (!chart.note.empty()) out += "<p>" + escape_html(chart.note) + "</p>";
    out += "</figcaption>\n<div class=\"plot\" role=\"img\" aria-label=\"Chart: " + title + "\"></div>\n</figure>\n";
  }
  return out + "</div>\n";
}

std::string name_switches(const std::vector<std::string>& names, size_t first) {
  if (names.size() < 2) return "";
  std::string out = "<div class=\"runs\">";
  for (size_t i = 0; i < names.size(); ++i) {
    const size_t place = first + i;
    out += "<button type=\"button\" disabled aria-pressed=\"true\" data-run=\"" + std::to_string(place) +
           "\"><span class=\"key run-" + std::to_string(place % 8) + "\"></span>" + html(names[i]) + "</button>";
  }
  return out + "</div>\n";
}

std::string heat_maps(const std::vector<HeatMap>& maps) {
  if (maps.empty()) return "";
  std::string out = "<div class=\"charts\">\n";
  for (const HeatMap& map : maps) {
    const size_t num_rows = map.columns.empty() ? 0 : map.columns.front().size();
    out += "<figure>\n<figcaption><h3>" + html(map.title) + "</h3><p>" + html(map.note) +
           "</p></figcaption>\n<svg class=\"heat\" role=\"img\" aria-label=\"" + html(map.title) + "\" viewBox=\"0 0 " +
           std::to_string(map.columns.size()) + " " + std::to_string(num_rows) + "\" preserveAspectRatio=\"none\">";
    for (size_t row = 0; row < num_rows; ++row) out += heat_row(map, row);
    out += "</svg>\n<p class=\"note\">Down: " + html(map.row_label) + ". Across: " + html(map.column_label) +
           ".</p>\n</figure>\n";
  }
  return out + "</div>\n";
}

}  // namespace lathe::report
