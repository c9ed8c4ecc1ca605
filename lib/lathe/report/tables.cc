#include "lathe/report/tables.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <unordered_map>
#include <unordered_set>

#include "lathe/base/json.h"
#include "lathe/base/text.h"
#include "lathe/report/document.h"
#include "lathe/report/figures.h"
#include "lathe/report/recipe_diff.h"

namespace lathe::report {
namespace {

constexpr size_t kMaxRows = 2000;
constexpr size_t kMaxSections = 32;

std::string run_name(const std::vector<Run>& runs, size_t index) { return html(run_label(runs, index)); }

std::string colour_class(size_t run) { return "run-" + std::to_string(run % 8); }

std::string table_head(const std::vector<Run>& runs, const std::string& first) {
  std::string out = "<thead><tr><th scope=\"col\">" + first + "</th>";
  for (size_t i = 0; i < runs.size(); ++i)
    out += "<th scope=\"col\"><span class=\"key " + colour_class(i) + "\"></span>" + run_name(runs, i) + "</th>";
  return out + "</tr></thead>\n";
}

// A table whose rows are names and whose columns are runs. A cell is HTML.
class RunTable {
 public:
  RunTable(const std::vector<Run>& runs, const std::string& css_class, const std::string& first_column)
      : columns_(runs.size()),
        out_("<div class=\"scroll\"><table class=\"" + css_class + (runs.size() == 1 ? " single" : "") + "\">\n") {
    if (runs.size() > 1) out_ += table_head(runs, first_column);
    out_ += "<tbody>\n";
  }

  void add_row(const std::string& name, const std::function<std::string(size_t run)>& cell) {
    if (++rows_ > kMaxRows) return;
    out_ += "<tr><th scope=\"row\">" + html(name) + "</th>";
    for (size_t i = 0; i < columns_; ++i) {
      const std::string content = cell(i);
      out_ += "<td>" + (content.empty() ? "&ndash;" : content) + "</td>";
    }
    out_ += "</tr>\n";
  }

  bool empty() const { return rows_ == 0; }
  std::string finish() const {
    std::string end = "</tbody></table></div>\n";
    if (rows_ > kMaxRows)
      end += "<p class=\"note\">" + std::to_string(rows_ - kMaxRows) + " more rows are left out.</p>\n";
    return out_ + end;
  }

 private:
  size_t columns_;
  size_t rows_ = 0;
  std::string out_;
};

std::string section(const std::string& title, const std::string& content) {
  return content.empty() ? "" : "<section>\n<h2>" + title + "</h2>\n" + content + "</section>\n";
}

// What run.json's object of some name holds in each run: by name, as finding each of n members of an ordered object
// takes n² steps.
struct Members {
  std::vector<std::string> names;  // of all runs, in order of appearance
  std::vector<std::unordered_map<std::string, const Json*>> of_run;

  const Json* find(size_t run, const std::string& name) const {
    const auto found = of_run[run].find(name);
    return found == of_run[run].end() ? nullptr : found->second;
  }
};

Members members_of(const std::vector<const Json*>& objects) {
  Members members{{}, std::vector<std::unordered_map<std::string, const Json*>>(objects.size())};
  std::unordered_set<std::string> seen;
  for (size_t i = 0; i < objects.size(); ++i) {
    if (objects[i] == nullptr || !objects[i]->is_object()) continue;
    for (const auto& item : objects[i]->items()) {
      if (seen.insert(item.key()).second) members.names.push_back(item.key());
      members.of_run[i].emplace(item.key(), &item.value());
    }
  }
  return members;
}

Members members_of(const std::vector<Run>& runs) {
  std::vector<const Json*> objects;
  for (const Run& run : runs) objects.push_back(&run.details);
  return members_of(objects);
}

Members members_of(const Members& details, const std::string& name) {
  std::vector<const Json*> objects;
  for (size_t i = 0; i < details.of_run.size(); ++i) objects.push_back(details.find(i, name));
  return members_of(objects);
}

std::string value_cell(const std::string& name, const Json* value) {
  if (value == nullptr || value->is_null()) return "";
  if (value->is_string()) return html(value->get_ref<const std::string&>());
  if (value->is_number()) return html(format_named(name, value->get<double>()));
  return html(value->dump());
}

std::string details_table(const std::vector<Run>& runs, const Members& members) {
  RunTable table(runs, "details", "");
  for (const std::string& name : members.names)
    table.add_row(name, [&](size_t i) { return value_cell(name, members.find(i, name)); });
  return table.empty() ? "" : table.finish();
}

std::string bar(double share, size_t run) {
  // A picture, not a style attribute: the page's policy allows none.
  return "<svg class=\"bar " + colour_class(run) + "\" aria-hidden=\"true\"><rect width=\"" +
         format_number(100 * share) + "%\" height=\"100%\" rx=\"2\"/></svg>";
}

double largest_magnitude(const Members& members) {
  double largest = 0;
  for (const auto& of_run : members.of_run) {
    for (const auto& [name, value] : of_run) {
      if (value->is_number()) largest = std::max(largest, std::abs(value->get<double>()));
    }
  }
  return largest;
}

const Figure* find_figure(const std::vector<Figure>& figures, const std::string& label) {
  const auto found =
      std::find_if(figures.begin(), figures.end(), [&](const Figure& figure) { return figure.label == label; });
  return found == figures.end() ? nullptr : &*found;
}

// Whether no run has a better value and some run a worse one.
bool is_best(const std::vector<std::vector<Figure>>& runs, const Figure& figure) {
  const double sign = figure.better == Figure::Better::Lower ? 1 : -1;
  bool some_worse = false;
  for (const auto& figures : runs) {
    const Figure* other = find_figure(figures, figure.label);
    if (other == nullptr) continue;
    if (sign * other->value < sign * figure.value) return false;
    some_worse |= sign * other->value > sign * figure.value;
  }
  return some_worse && figure.better != Figure::Better::Neither;
}

std::string recipe_text(const Run& run) {
  std::string out = "<pre>";
  std::string_view text = run.recipe;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    out += html(text.substr(0, end)) + "\n";
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out + "</pre>\n";
}

std::string differences_table(const std::vector<Run>& runs) {
  std::vector<std::string> recipes;
  for (const Run& run : runs) recipes.push_back(run.recipe);
  RunTable table(runs, "details", "key");
  for (const RecipeDifference& row : recipe_differences(recipes))
    table.add_row(row.key, [&row](size_t i) { return html(row.values[i]); });
  return table.empty() ? "<p>The recipes are equal.</p>\n" : table.finish();
}

}  // namespace

std::string run_label(const std::vector<Run>& runs, size_t index) {
  const auto same = [&](const Run& run) { return run.name == runs[index].name; };
  const auto before = std::count_if(runs.begin(), runs.begin() + static_cast<ptrdiff_t>(index), same);
  const bool alone = std::count_if(runs.begin(), runs.end(), same) == 1;
  return runs[index].name + (alone ? "" : " (" + std::to_string(before + 1) + ")");
}

std::string warnings_section(const std::vector<Run>& runs) {
  std::string items;
  for (size_t i = 0; i < runs.size(); ++i) {
    for (const std::string& warning : runs[i].warnings)
      items += "<li>" + (runs.size() > 1 ? run_name(runs, i) + ": " : "") + html(warning) + "</li>\n";
  }
  return items.empty() ? "" : "<ul class=\"warnings\">\n" + items + "</ul>\n";
}

std::string figures_section(const std::vector<Run>& runs) {
  std::vector<std::vector<Figure>> all;
  std::vector<std::string> labels;
  for (const Run& run : runs) {
    all.push_back(final_figures(run));
    for (const Figure& figure : all.back()) {
      if (std::find(labels.begin(), labels.end(), figure.label) == labels.end()) labels.push_back(figure.label);
    }
  }
  RunTable table(runs, "figures", "");
  for (const std::string& label : labels) {
    table.add_row(label, [&](size_t i) -> std::string {
      const Figure* figure = find_figure(all[i], label);
      if (figure == nullptr) return "";
      std::string text = html(figure->text);
      if (is_best(all, *figure)) text = "<strong>" + text + "</strong>";
      return figure->place.empty() ? text : text + " <small>" + html(figure->place) + "</small>";
    });
  }
  return table.empty() ? "" : section("Final figures", table.finish());
}

std::string norms_section(const std::vector<Run>& runs) {
  const Members norms = members_of(members_of(runs), "adapter_norms");
  const double largest = largest_magnitude(norms);
  RunTable table(runs, "norms", "module");
  for (const std::string& module : norms.names) {
    table.add_row(module, [&](size_t i) -> std::string {
      const Json* norm = norms.find(i, module);
      const std::string text = value_cell("", norm);
      if (text.empty() || !norm->is_number() || largest == 0) return text;
      return bar(std::abs(norm->get<double>()) / largest, i) + "<span>" + text + "</span>";
    });
  }
  return table.empty() ? "" : section("Adapter norms", table.finish());
}

std::string recipe_section(const std::vector<Run>& runs) {
  if (std::all_of(runs.begin(), runs.end(), [](const Run& run) { return run.recipe.empty(); })) return "";
  std::string content;
  if (runs.size() > 1) content = "<h3>What differs</h3>\n" + differences_table(runs);
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].recipe.empty()) continue;
    content += "<details" + std::string(runs.size() == 1 ? " open" : "") + "><summary>recipe.yaml" +
               (runs.size() == 1 ? "" : " of " + run_name(runs, i)) + "</summary>" + recipe_text(runs[i]) +
               "</details>\n";
  }
  return section("Recipe", content);
}

std::string details_section(const std::vector<Run>& runs) {
  const Members details = members_of(runs);
  std::string out;
  size_t sections = 0;
  RunTable others(runs, "details", "");
  for (const std::string& name : details.names) {
    const Members members = members_of(details, name);
    if (members.names.empty()) {
      others.add_row(name, [&](size_t i) { return value_cell(name, details.find(i, name)); });
    } else if (name != "adapter_norms" && ++sections <= kMaxSections) {
      std::string title = html(name);
      if (title[0] >= 'a' && title[0] <= 'z') title[0] = static_cast<char>(title[0] - 'a' + 'A');
      out += section(title, details_table(runs, members));
    }
  }
  if (!others.empty()) out += section("Other", others.finish());
  if (sections > kMaxSections)
    out += "<p class=\"note\">" + std::to_string(sections - kMaxSections) +
           " more objects of run.json are left out.</p>\n";
  return out.empty() ? "" : "<div class=\"facts\">\n" + out + "</div>\n";
}

}  // namespace lathe::report
