#include "lathe/report/memory.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string_view>
#include <utility>

#include "lathe/report/document.h"
#include "lathe/report/figures.h"
#include "lathe/report/tables.h"

namespace lathe::report {
namespace {

constexpr size_t kMaxComponents = 8;  // as many as there are colours

struct PlannedPeak {
  std::vector<std::pair<std::string, double>> components;
  double planned = 0, measured = 0;  ///< 0: not measured
};

double bytes_in(const Json& object, const char* key) {
  const auto found = object.find(key);
  const bool number = found != object.end() && found->is_number() && std::isfinite(found->get<double>());
  return number ? std::max(0.0, found->get<double>()) : 0;
}

PlannedPeak planned_peak(const Run& run) {
  PlannedPeak peak;
  const auto planned = run.details.find("planned_peak"), measured = run.details.find("measured");
  if (planned == run.details.end() || !planned->is_object()) return peak;
  for (const auto& [name, value] : planned->items()) {
    constexpr std::string_view kUnit = "_bytes";
    const double bytes = bytes_in(*planned, name.c_str());
    if (!name.ends_with(kUnit) || bytes == 0 || peak.components.size() == kMaxComponents) continue;
    peak.components.emplace_back(name.substr(0, name.size() - kUnit.size()), bytes);
    peak.planned += bytes;
  }
  if (measured != run.details.end() && measured->is_object()) peak.measured = bytes_in(*measured, "peak_bytes");
  return peak;
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", value);
  return text;
}

std::string in_bytes(double value) { return format_named("bytes", value); }

// Parts of a whole of width 1, one behind the other.
class StackedBar {
 public:
  StackedBar(const std::string& what, double whole) : whole_(whole) {
    out_ = "<svg class=\"stack\" role=\"img\" aria-label=\"" + html(what) +
           "\" viewBox=\"0 0 1 1\" preserveAspectRatio=\"none\">";
  }
  void add(size_t colour, double bytes) {
    out_ += "<rect class=\"run-" + std::to_string(colour) + "\" x=\"" + number(at_ / whole_) +
            "\" y=\"0\" height=\"1\" width=\"" + number(bytes / whole_) + "\"/>";
    at_ += bytes;
  }
  std::string finish() const { return out_ + "</svg>\n"; }

 private:
  double whole_, at_ = 0;
  std::string out_;
};

std::string figure(const std::string& title, const PlannedPeak& peak, double whole) {
  std::string note = "Planned " + in_bytes(peak.planned);
  if (peak.measured > 0) note += ", measured " + in_bytes(peak.measured);
  std::string rows;
  StackedBar planned("Planned peak by component", whole);
  for (size_t i = 0; i < peak.components.size(); ++i) {
    const auto& [name, bytes] = peak.components[i];
    planned.add(i, bytes);
    rows += "<tr><th scope=\"row\"><span class=\"key run-" + std::to_string(i) + "\"></span>" + html(name) +
            "</th><td>" + in_bytes(bytes) + "</td><td>" + number(std::round(1000 * bytes / peak.planned) / 10) +
            " %</td></tr>\n";
  }
  std::string out = "<figure>\n<figcaption><h3>" + title + "</h3><p>" + note + "</p></figcaption>\n" + planned.finish();
  if (peak.measured > 0) {
    StackedBar measured("Measured peak", whole);
    measured.add(kMaxComponents - 1, peak.measured);
    out += measured.finish();
    rows += "<tr><th scope=\"row\"><span class=\"key run-" + std::to_string(kMaxComponents - 1) +
            "\"></span>measured</th><td>" + in_bytes(peak.measured) + "</td><td>" +
            number(std::round(1000 * peak.measured / peak.planned) / 10) + " %</td></tr>\n";
  }
  return out + "<table class=\"single\"><tbody>\n" + rows + "</tbody></table>\n</figure>\n";
}

}  // namespace

std::string memory_section(const std::vector<Run>& runs) {
  std::vector<PlannedPeak> peaks;
  double whole = 0;
  for (const Run& run : runs) {
    peaks.push_back(planned_peak(run));
    whole = std::max({whole, peaks.back().planned, peaks.back().measured});
  }
  std::string figures;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (!peaks[i].components.empty()) figures += figure(html(run_label(runs, i)), peaks[i], whole);
  }
  if (figures.empty()) return "";
  return "<section>\n<h2>Memory at the peak</h2>\n<p class=\"note\">What the plan holds live when most is, and the "
         "peak that was measured: LibTorch's allocator and mapped weights, without the process's own base.</p>\n"
         "<div class=\"charts\">\n" +
         figures + "</div>\n</section>\n";
}

}  // namespace lathe::report
