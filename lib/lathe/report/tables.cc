#include "lathe/report/tables.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <unordered_map>

#include "lathe/base/json.h"
#include "lathe/base/text.h"
#include "lathe/report/figures.h"
#include "lathe/report/recipe_diff.h"

namespace lathe::report {
namespace {

constexpr size_t kMaxRows = 2000;
constexpr size_t kMaxMembers = 32;

std::string html(std::string_view text) { return escape_html(printable(text)); }

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

// The names in all of the runs' objects of that name in run.json, in order of appearance.
std::vector<std::string> member_names(const std::vector<Run>& runs, const std::string& member) {
  std::vector<std::string> names;
  std::unordered_map<std::string, bool> seen;
  for (const Run& run : runs) {
    const auto found = run.details.find(member);
    if (found == run.details.end() || !found->is_object()) continue;
    for (const auto& item : found->items()) {
      if (seen.try_emplace(item.key(), true).second) names.push_back(item.key());
    }
  }
  return names;
}

// run.json's objects by name: finding each of n members of an ordered object takes n² steps.
std::vector<std::unordered_map<std::string, const Json*>> members_by_name(const std::vector<Run>& runs,
                                                                          const std::string& member) {
  std::vector<std::unordered_map<std::string, const Json*>> maps(runs.size());
  for (size_t i = 0; i < runs.size(); ++i) {
    const auto found = runs[i].details.find(member);
    if (found == runs[i].details.end() || !found->is_object()) continue;
    for (const auto& item : found->items()) maps[i].emplace(item.key(), &item.value());
  }
  return maps;
}

std::string value_cell(const std::string& name, const Json& value) {
  if (value.is_string()) return html(value.get_ref<const std::string&>());
  if (value.is_number()) return html(format_named(name, value.get<double>()));
  return html(value.dump());
}

std::string member_table(const std::vector<Run>& runs, const std::string& member) {
  const auto maps = members_by_name(runs, member);
  RunTable table(runs, "details", "");
  for (const std::string& name : member_names(runs, member)) {
    table.add_row(name, [&](size_t i) {
      const auto found = maps[i].find(name);
      return found == maps[i].end() ? "" : value_cell(name, *found->second);
    });
  }
  return table.empty() ? "" : table.finish();
}

std::string bar(double share, size_t run) {
  // A picture, not a style attribute: the page's policy allows none.
  return "<svg class=\"bar " + colour_class(run) + "\" aria-hidden=\"true\"><rect width=\"" +
         format_number(100 * share) + "%\" height=\"100%\" rx=\"2\"/></svg>";
}

double largest_norm(const std::vector<std::unordered_map<std::string, const Json*>>& maps) {
  double largest = 0;
  for (const auto& norms : maps) {
    for (const auto& [name, value] : norms) {
      if (value->is_number() && std::isfinite(value->get<double>()))
        largest = std::max(largest, std::abs(value->get<double>()));
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

std::string run_name(const std::vector<Run>& runs, size_t index) {
  const auto same = [&](const Run& run) { return run.name == runs[index].name; };
  const auto before = std::count_if(runs.begin(), runs.begin() + static_cast<ptrdiff_t>(index), same);
  const bool alone = std::count_if(runs.begin(), runs.end(), same) == 1;
  return html(runs[index].name) + (alone ? "" : " (" + std::to_string(before + 1) + ")");
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
      return is_best(all, *figure) ? "<strong>" + html(figure->text) + "</strong>" : html(figure->text);
    });
  }
  return table.empty() ? "" : section("Final figures", table.finish());
}

std::string norms_section(const std::vector<Run>& runs) {
  const auto maps = members_by_name(runs, "adapter_norms");
  const double largest = largest_norm(maps);
  RunTable table(runs, "norms", "module");
  for (const std::string& module : member_names(runs, "adapter_norms")) {
    table.add_row(module, [&](size_t i) -> std::string {
      const auto found = maps[i].find(module);
      if (found == maps[i].end()) return "";
      const std::string text = "<span>" + value_cell("", *found->second) + "</span>";
      if (!found->second->is_number() || largest == 0) return text;
      return bar(std::abs(found->second->get<double>()) / largest, i) + text;
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
  std::vector<std::string> members;
  for (const Run& run : runs) {
    for (const auto& item : run.details.items()) {
      if (item.key() != "adapter_norms" && std::find(members.begin(), members.end(), item.key()) == members.end() &&
          members.size() < kMaxMembers)
        members.push_back(item.key());
    }
  }
  std::string out;
  for (const std::string& member : members) {
    std::string title = html(member);
    if (!title.empty() && title[0] >= 'a' && title[0] <= 'z') title[0] = static_cast<char>(title[0] - 'a' + 'A');
    out += section(title, member_table(runs, member));
  }
  return out;
}

}  // namespace lathe::report
