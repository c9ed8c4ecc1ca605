#include <algorithm>
#include <cstdio>
#include <utility>

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

std::string indented(const std::string& lines) {
  std::string out;
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = std::min(lines.find('\n', begin), lines.size());
    out += "    " + lines.substr(begin, end - begin) + "\n";
    begin = end + 1;
  }
  return out;
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

std::string table_html(const std::string& kind, const std::vector<std::string>& head,
                       const std::vector<std::vector<std::string>>& rows) {
  std::string out = "<div class=\"scroll\"><table" + (kind.empty() ? "" : " class=\"" + kind + "\"") + ">\n";
  if (!head.empty()) out += "<thead><tr>";
  for (const std::string& cell : head) out += "<th scope=\"col\">" + escape_html(cell) + "</th>";
  out += std::string(head.empty() ? "" : "</tr></thead>\n") + "<tbody>\n";
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
      "<div class=\"scroll\"><table class=\"claims\">\n<thead><tr><th scope=\"col\">Claim</th><th "
      "scope=\"col\">Expected</th><th scope=\"col\">Measured</th></tr></thead>\n<tbody>\n";
  for (const Claim& claim : claims)
    out += std::string("<tr><th scope=\"row\" class=\"") + (claim.holds ? "holds" : "fails") + "\">" +
           escape_html(claim.text) + "</th><td>" + escape_html(claim.derived) + "</td><td>" +
           escape_html(claim.measured) + "</td></tr>\n";
  return out + "</tbody></table></div>\n";
}

std::string derivation_html(const std::vector<Step>& derivation) {
  if (derivation.empty()) return "";
  std::string out = "<h3>Derivation</h3>\n";
  std::vector<std::vector<std::string>> steps;
  const auto close_table = [&] {
    if (!steps.empty()) out += table_html("derivation", {}, std::exchange(steps, {}));
  };
  for (const Step& step : derivation) {
    if (!step.formula.empty()) {
      steps.push_back({step.text, step.formula, step.value});
      continue;
    }
    close_table();
    out += paragraph(step.text);
  }
  close_table();
  return out;
}

std::string question_html(const Question& question, const Answer& answer, const std::vector<report::Chart>& charts,
                          size_t first_name) {
  const std::string id = question.id;
  std::string out = "<section id=\"" + id + "\">\n<h2>" + escape_html(id + " " + question.title) + "</h2>\n" +
                    paragraph(question.text) + "<p><strong>In short: </strong>" + escape_html(answer.in_short) +
                    "</p>\n";
  for (const Listing& listing : answer.listings)
    out += "<h3>" + escape_html(listing.title) + "</h3>\n<pre class=\"code\">" + escape_html(listing.code) +
           "</pre>\n" + (listing.symptom.empty() ? "" : paragraph(listing.symptom));
  for (const Diagram& diagram : answer.diagrams)
    out += "<figure class=\"diagram\"><figcaption><h3>" + escape_html(diagram.title) + "</h3></figcaption>\n" +
           diagram.svg + "</figure>\n";
  out += derivation_html(answer.derivation) + "<h3>Verdict</h3>\n" + claims_html(answer.claims);
  for (const Table& table : answer.tables) {
    out += "<h3>" + escape_html(table.title) + "</h3>\n";
    if (!table.note.empty()) out += "<p class=\"note\">" + escape_html(table.note) + "</p>\n";
    out += table_html("", table.head, table.rows);
  }
  if (!charts.empty()) out += report::name_switches(answer.names, first_name) + report::chart_figures(charts);
  return out + heat_maps(answer.maps) + "</section>\n";
}

// The way to each question, and how it ended.
std::string contents_html(const std::vector<std::pair<const Question*, Answer>>& answers) {
  std::string out = "<nav><ul class=\"contents\">\n";
  for (const auto& [question, answer] : answers)
    out += std::string("<li class=\"") + (all_hold(answer) ? "proved" : "refuted") + "\"><a href=\"#" + question->id +
           "\">" + escape_html(std::string(question->id) + " " + question->title) + "</a></li>\n";
  return out + "</ul></nav>\n";
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
  out += wrapped("In short: " + answer.in_short, "  ") + "\n";
  for (const Listing& listing : answer.listings)
    out += listing.title + "\n" + indented(listing.code) +
           (listing.symptom.empty() ? "" : wrapped(listing.symptom, "  ")) + "\n";
  for (const Diagram& diagram : answer.diagrams) out += diagram.title + "\n" + indented(diagram.text) + "\n";
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
  report::Document page{
      .kind = "Lathe practice", .title = "Lathe practice", .heading = "The practice exam", .charts_in_text = true};
  if (answers.size() > 1) page.before = contents_html(answers);
  if (answers.size() == 1) page.title = answers.front().first->id + std::string(" - Lathe practice");
  for (const auto& [question, answer] : answers) {
    std::vector<report::Chart> charts = answer.charts;
    for (report::Chart& chart : charts) {
      chart.id = std::string("q") + question->id + "_" + chart.id;
      for (report::Curve& curve : chart.curves) curve.run += page.names.size();
    }
    page.before += question_html(*question, answer, charts, page.names.size());
    page.charts.insert(page.charts.end(), charts.begin(), charts.end());
    page.names.insert(page.names.end(), answer.names.begin(), answer.names.end());
  }
  return report::render_document(page);
}

}  // namespace lathe::app::practice
