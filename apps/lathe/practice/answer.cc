#include <algorithm>
#include <cstdio>

#include "lathe/base/text.h"
#include "practice/question.h"

namespace lathe::app::practice {
namespace {

constexpr size_t kColumns = 110;

// `text` broken between words.
std::string wrapped(const std::string& text, const std::string& indent) {
  std::string out, line;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (!line.empty() && line.size() + 1 + word.size() > kColumns - indent.size()) {
      out += indent + line + "\n";
      line.clear();
    }
    line += (line.empty() ? "" : " ") + word;
    begin = end + 1;
  }
  return out + indent + line + "\n";
}

std::string padded(const std::string& text, size_t width) {
  return text.size() >= width ? text : text + std::string(width - text.size(), ' ');
}

std::string table_text(const Table& table) {
  std::vector<size_t> widths;
  for (const std::string& cell : table.head) widths.push_back(cell.size());
  for (const auto& row : table.rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string out = " ";
    for (size_t i = 0; i < cells.size(); ++i)
      out += " " + (i + 1 < cells.size() ? padded(cells[i], widths[i] + 1) : cells[i]);
    return out + "\n";
  };
  std::string out = "\n" + table.title + "\n" + line(table.head);
  for (const auto& row : table.rows) out += line(row);
  return out + (table.note.empty() ? "" : wrapped(table.note, "  "));
}

std::string paragraph(const std::string& text) { return "<p>" + escape_html(text) + "</p>\n"; }

std::string table_html(const std::vector<std::string>& head, const std::vector<std::vector<std::string>>& rows) {
  std::string out = "<div class=\"scroll\"><table>\n<thead><tr>";
  for (const std::string& cell : head) out += "<th scope=\"col\">" + escape_html(cell) + "</th>";
  out += "</tr></thead>\n<tbody>\n";
  for (const auto& row : rows) {
    out += "<tr>";
    for (size_t i = 0; i < row.size(); ++i)
      out += (i == 0 ? "<th scope=\"row\">" : "<td>") + escape_html(row[i]) + (i == 0 ? "</th>" : "</td>");
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string claims_html(const std::vector<Claim>& claims) {
  std::string out =
      "<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Claim</th><th scope=\"col\">Expected</th>"
      "<th scope=\"col\">Measured</th></tr></thead>\n<tbody>\n";
  for (const Claim& claim : claims)
    out += std::string("<tr><th scope=\"row\" class=\"") + (claim.holds ? "holds" : "fails") + "\">" +
           escape_html(claim.text) + "</th><td>" + escape_html(claim.derived) + "</td><td>" +
           escape_html(claim.measured) + "</td></tr>\n";
  return out + "</tbody></table></div>\n";
}

std::string question_html(const Question& question, const Answer& answer) {
  std::string out = "<section>\n<h2>" + escape_html(std::string(question.id) + " " + question.title) + "</h2>\n" +
                    paragraph(question.text);
  std::vector<std::vector<std::string>> steps;
  for (const Step& step : answer.derivation) steps.push_back({step.text, step.formula, step.value});
  if (!steps.empty()) out += "<h3>Derivation</h3>\n" + table_html({"", "", ""}, steps);
  out += "<h2>Verdict</h2>\n" + claims_html(answer.claims);
  for (const Table& table : answer.tables) {
    out += "<h2>" + escape_html(table.title) + "</h2>\n";
    if (!table.note.empty()) out += "<p class=\"note\">" + escape_html(table.note) + "</p>\n";
    out += table_html(table.head, table.rows);
  }
  return out + heat_maps(answer.maps) + "</section>\n";
}

}  // namespace

bool all_hold(const Answer& answer) {
  return std::all_of(answer.claims.begin(), answer.claims.end(), [](const Claim& claim) { return claim.holds; });
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g", value);
  return text;
}

std::string answer_text(const Question& question, const Answer& answer) {
  std::string out = std::string(question.id) + "  " + question.title + "\n" + wrapped(question.text, "  ") + "\n";
  for (const Step& step : answer.derivation) {
    out += wrapped(step.text, "  ");
    if (!step.formula.empty()) out += "    " + step.formula + (step.value.empty() ? "" : " = " + step.value) + "\n";
  }
  for (const Table& table : answer.tables) out += table_text(table);
  out += "\nVerdict\n";
  for (const Claim& claim : answer.claims) {
    out += wrapped((claim.holds ? "holds  " : "FAILS  ") + claim.text, "  ");
    out += "         expected " + claim.derived + "; measured " + claim.measured + "\n";
  }
  return out;
}

std::string answer_page(const std::vector<std::pair<const Question*, Answer>>& answers) {
  report::Document page{.kind = "Lathe practice", .title = "Lathe practice", .heading = "The practice exam"};
  if (answers.size() == 1) {
    page.heading = std::string(answers.front().first->id) + " " + answers.front().first->title;
    page.title = page.heading + " - Lathe practice";
  }
  for (const auto& [question, answer] : answers) {
    page.before += question_html(*question, answer);
    for (report::Chart chart : answer.charts) {
      chart.id = std::string("q") + question->id + "_" + chart.id;
      for (report::Curve& curve : chart.curves) curve.run += page.names.size();
      page.charts.push_back(std::move(chart));
    }
    page.names.insert(page.names.end(), answer.names.begin(), answer.names.end());
  }
  return report::render_document(page);
}

}  // namespace lathe::app::practice
