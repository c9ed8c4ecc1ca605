#pragma once

#include <string>
#include <vector>

#include "lathe/report/charts.h"
#include "lathe/report/document.h"

/// The practice exam: each question is answered by a derivation that is computed, a run that proves it, and a verdict.
///
/// A question is one file that defines one `Question`; its declaration and its place in the list are lines of
/// questions.cc. What it returns is text and numbers, collected by a Working (working.h): answer_text() and
/// answer_page() do the rest.
namespace lathe::app::practice {

/// A line of a derivation: what it says, how it is computed, and the value that came out.
struct Step {
  std::string text, formula, value;
};

struct Table {
  std::string title, note;
  std::vector<std::string> head;
  std::vector<std::vector<std::string>> rows;
};

/// A statement that the run decides. Times are shown in tables, never claimed.
struct Claim {
  std::string text;
  std::string derived;   ///< what it should be
  std::string measured;  ///< what the run found
  bool holds = false;
  bool of_derivation = false;  ///< whether what it should be is a number of the derivation
};

/// Code that the question is about, and what it does.
struct Listing {
  std::string title, code, symptom = {};
};

/// A drawing, for the terminal and for the page.
struct Diagram {
  std::string title, text, svg;
};

struct Answer {
  std::string in_short = {};  ///< the answer in a sentence or two
  std::vector<Step> derivation = {};
  std::vector<Listing> listings = {};
  std::vector<Diagram> diagrams = {};
  std::vector<Table> tables = {};
  std::vector<Claim> claims = {};
  // On the page only:
  std::vector<std::string> names = {};  ///< of the charts' curves
  std::vector<report::Chart> charts = {};
  std::vector<report::HeatMap> maps = {};
};

/// How a question is answered.
struct Settings {
  bool full = false;         ///< the run of the specification's bars, of minutes; else one of seconds
  std::string variant = {};  ///< the only wrong one of Question::variants that runs; empty: all
  /// For tests: every number of the derivation comes out wrong by this share, so that the claims on it must fail.
  double perturbation = 0;
};

struct Question {
  const char* id;     ///< "3b"
  const char* title;  ///< a few words
  const char* text;   ///< the question
  Answer (*answer)(const Settings& settings);
  bool has_long_run = false;               ///< whether Settings::full makes a difference
  std::vector<std::string> variants = {};  ///< of the code that the question is about
};

/// All questions in the exam's order.
const std::vector<const Question*>& questions();

/// For the terminal. Lines of at most 120 columns but for wide tables.
std::string answer_text(const Question& question, const Answer& answer);
/// One self-contained page about some answers.
std::string answer_page(const std::vector<std::pair<const Question*, Answer>>& answers);

bool all_hold(const Answer& answer);

/// 0.02173 -> "0.0217": three significant digits, for tables and claims.
std::string short_number(double value);

}  // namespace lathe::app::practice
