#include "lathe/report/evaluation.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "lathe/base/error.h"
#include "lathe/base/text.h"
#include "lathe/report/document.h"
#include "lathe/report/run.h"
#include "lathe/report/tables.h"

namespace lathe::report {
namespace {

constexpr size_t kMaxLabels = 100000, kMaxMatrix = 30, kMaxMistakes = 100;
constexpr int64_t kMaxSamples = int64_t{1} << 53;

std::string percent(double share) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "%.1f %%", 100 * share);
  return text.data();
}

const Json& array_of(const JsonObject& object, const std::string& key, size_t size) {
  const Json* value = object.find(key);
  if (value == nullptr || !value->is_array() || value->size() != size)
    throw object.error(key, Diagnostic::expected("a list of " + std::to_string(size),
                                                 value == nullptr ? "nothing" : describe(*value)));
  return *value;
}

double share_of(const JsonObject& object, const std::string& key) {
  const double share = object.number(key, 0);
  if (!(share >= 0 && share <= 1)) throw object.error(key, "expected a number from 0 to 1");
  return share;
}

std::vector<ClassEvaluation::Class> read_classes(const JsonObject& object) {
  const Json* labels = object.find("labels");
  if (labels == nullptr || !labels->is_array() || labels->size() > kMaxLabels)
    throw object.error("labels", "expected a list of strings");
  const size_t count = labels->size();
  const Json &samples = array_of(object, "class_samples", count), &accuracy = array_of(object, "class_accuracy", count);
  const Json* confusion = object.find("confusion") == nullptr ? nullptr : &array_of(object, "confusion", count);
  std::vector<ClassEvaluation::Class> classes;
  for (size_t i = 0; i < count; ++i) {
    if (!(*labels)[i].is_string()) throw object.error("labels", "expected a list of strings");
    ClassEvaluation::Class item{(*labels)[i].get<std::string>(),
                                object.integer_of("class_samples", samples[i], 0, kMaxSamples)};
    if (accuracy[i].is_number()) item.accuracy = accuracy[i].get<double>();
    if (confusion != nullptr && count <= kMaxMatrix) {
      const Json& row = (*confusion)[i];
      if (!row.is_array() || row.size() != count) throw object.error("confusion", "expected a square of numbers");
      for (const Json& number : row) item.predictions.push_back(object.integer_of("confusion", number, 0, kMaxSamples));
    }
    classes.push_back(std::move(item));
  }
  return classes;
}

ClassEvaluation::Mistake read_mistake(const JsonObject& object, size_t num_labels) {
  const auto last = static_cast<int64_t>(num_labels) - 1;
  ClassEvaluation::Mistake mistake;
  mistake.place = object.string("place", "");
  mistake.text = object.string("text", "");
  mistake.picture = object.string("picture", "");
  const auto is_digit = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '+' || c == '/' ||
           c == '=';
  };
  if (!std::all_of(mistake.picture.begin(), mistake.picture.end(), is_digit))
    throw object.error("picture", "expected base64");
  mistake.truth = static_cast<size_t>(object.integer("truth", 0, last));
  mistake.predicted = static_cast<size_t>(object.integer("predicted", 0, last));
  mistake.truth_probability = share_of(object, "truth_probability");
  mistake.predicted_probability = share_of(object, "predicted_probability");
  return mistake;
}

// The cell's colour says its share of the row, in nine steps.
std::string heat(int64_t count, int64_t samples) {
  const double share = samples == 0 ? 0 : static_cast<double>(count) / static_cast<double>(samples);
  return "heat-" + std::to_string(std::clamp<int64_t>(std::lround(8 * std::sqrt(share)), 0, 8));
}

std::string matrix(const ClassEvaluation& evaluation) {
  std::string out =
      "<div class=\"scroll\" tabindex=\"0\"><table class=\"confusion\"><thead><tr><th scope=\"col\">is \\ taken "
      "for</th>";
  for (const auto& item : evaluation.classes) out += "<th scope=\"col\">" + html(item.label) + "</th>";
  out += "<th scope=\"col\">right</th></tr></thead>\n<tbody>\n";
  for (size_t truth = 0; truth < evaluation.classes.size(); ++truth) {
    const auto& item = evaluation.classes[truth];
    out += "<tr><th scope=\"row\">" + html(item.label) + "</th>";
    for (size_t predicted = 0; predicted < item.predictions.size(); ++predicted) {
      const int64_t count = item.predictions[predicted];
      const std::string kind = truth == predicted ? "right " : "wrong ";
      out += "<td class=\"" + kind + heat(count, item.samples) + "\">" + std::to_string(count) + "</td>";
    }
    out += "<td>" + (item.accuracy ? percent(*item.accuracy) : "&ndash;") + "</td></tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string class_list(const ClassEvaluation& evaluation) {
  std::string out =
      "<div class=\"scroll\" tabindex=\"0\"><table class=\"classes\"><thead><tr><th scope=\"col\">class</th><th "
      "scope=\"col\">samples</th><th scope=\"col\">right</th></tr></thead>\n<tbody>\n";
  for (const auto& item : evaluation.classes) {
    out += "<tr><th scope=\"row\">" + html(item.label) + "</th><td>" + std::to_string(item.samples) + "</td><td>" +
           (item.accuracy ? percent(*item.accuracy) : "&ndash;") + "</td></tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string mistakes(const ClassEvaluation& evaluation) {
  if (evaluation.worst.empty()) return "<p>No mistakes.</p>\n";
  std::string out =
      "<h3>Worst mistakes</h3>\n<p class=\"note\">Those whose true class was thought least likely.</p>\n<div "
      "class=\"mistakes\">\n";
  for (const auto& mistake : evaluation.worst) {
    const std::string truth = html(evaluation.classes[mistake.truth].label);
    out += "<figure>";
    if (!mistake.picture.empty())
      out += "<img alt=\"" + truth + "\" src=\"data:image/png;base64," + mistake.picture + "\">";
    if (!mistake.text.empty()) out += "<blockquote>" + html(mistake.text) + "</blockquote>";
    out += "<figcaption><strong>" + truth + "</strong> (" + percent(mistake.truth_probability) +
           ") taken for <strong>" + html(evaluation.classes[mistake.predicted].label) + "</strong> (" +
           percent(mistake.predicted_probability) + ")<small>" + html(mistake.place) +
           "</small></figcaption></figure>\n";
  }
  return out + "</div>\n";
}

}  // namespace

ClassEvaluation read_class_evaluation(const Json& json, const std::string& file) {
  const JsonObject object(json, file);
  ClassEvaluation evaluation;
  evaluation.step = object.integer("step", 0, kMaxSamples);
  evaluation.samples = object.integer("samples", 0, kMaxSamples);
  evaluation.classes = read_classes(object);
  const Json* worst = object.find("worst");
  if (worst != nullptr && (!worst->is_array() || worst->size() > kMaxMistakes))
    throw object.error("worst", "expected a list of at most " + std::to_string(kMaxMistakes));
  for (size_t i = 0; worst != nullptr && i < worst->size(); ++i) {
    const JsonObject item((*worst)[i], file, "worst." + std::to_string(i));
    evaluation.worst.push_back(read_mistake(item, evaluation.classes.size()));
  }
  return evaluation;
}

std::string evaluation_section(const std::vector<Run>& runs) {
  std::string content;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (!runs[i].evaluation) continue;
    const ClassEvaluation& evaluation = *runs[i].evaluation;
    const std::string summary = "Step " + std::to_string(evaluation.step) + ", " + std::to_string(evaluation.samples) +
                                " samples" + (runs.size() > 1 ? ": " + html(run_label(runs, i)) : "");
    const bool is_matrix = !evaluation.classes.empty() && !evaluation.classes.front().predictions.empty();
    content += "<details class=\"evaluation\"" + std::string(runs.size() == 1 ? " open" : "") + "><summary>" + summary +
               "</summary>\n" + (is_matrix ? matrix(evaluation) : class_list(evaluation)) + mistakes(evaluation) +
               "</details>\n";
  }
  return content.empty() ? "" : "<section>\n<h2>Evaluation by class</h2>\n" + content + "</section>\n";
}

}  // namespace lathe::report
