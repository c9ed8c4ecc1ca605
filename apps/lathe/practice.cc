#include "practice/question.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <utility>
#include <vector>

#include "console.h"
#include "lathe/base/files.h"
#include "lathe/base/text.h"
#include "lathe/report/document.h"
#include "lathe/train/signals.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

std::vector<const practice::Question*> chosen(const std::string& id) {
  if (id == "all") return practice::questions();
  std::vector<std::string> known;
  for (const practice::Question* question : practice::questions()) {
    if (id == question->id) return {question};
    known.emplace_back(question->id);
  }
  known.emplace_back("all");
  throw Error(ErrorKind::Config,
              Diagnostic{"lathe practice", 0, 0, "", "unknown question " + quote(id), "known: " + join(known, ", ")});
}

bool has_long_run(const practice::Question* question) { return question->has_long_run; }
bool has_variants(const practice::Question* question) { return !question->variants.empty(); }

// Throws unless one of the questions has what an option asks for.
void require_any(const std::vector<const practice::Question*>& questions, bool (*has)(const practice::Question*),
                 const std::string& chosen, const std::string& what) {
  if (std::any_of(questions.begin(), questions.end(), has)) return;
  std::vector<std::string> ids;
  for (const practice::Question* question : practice::questions()) {
    if (has(question)) ids.emplace_back(question->id);
  }
  throw Error(ErrorKind::Config, Diagnostic{"lathe practice", 0, 0, "", quote(chosen) + " has no " + what,
                                            "questions with one: " + join(ids, ", ")});
}

void require_variant(const practice::Question& question, const std::string& variant) {
  if (std::find(question.variants.begin(), question.variants.end(), variant) != question.variants.end()) return;
  throw Error(ErrorKind::Config, Diagnostic{"lathe practice", 0, 0, "", "unknown variant " + quote(variant),
                                            "known: " + join(question.variants, ", ")});
}

void leave(int) {
  constexpr char kLine[] = "error: lathe practice: stopped by a signal, nothing is saved\n";
  (void)!::write(STDERR_FILENO, kLine, sizeof(kLine) - 1);
  ::_exit(static_cast<int>(ErrorKind::Interrupted));
}

}  // namespace

void end_practice_on_stop_signals() { train::on_stop_signals(leave); }

int run_practice(const CommandLine& line) {
  if (line.recipe.empty()) {
    std::string list;
    for (const practice::Question* question : practice::questions())
      list += std::string(question->id) + "  " + question->title + "\n";
    print_result(list);
    return 0;
  }
  const auto questions = chosen(line.recipe);
  if (line.full) require_any(questions, has_long_run, line.recipe, "long run (--full)");
  if (!line.variant.empty()) {
    require_any({questions.begin(), questions.begin() + (questions.size() == 1 ? 1 : 0)}, has_variants, line.recipe,
                "wrong variant (--variant)");
    require_variant(*questions.front(), line.variant);
  }
  if (!line.out.empty()) {
    require_writable(line.out);
    require_replaceable(line.out, ".html", report::kPageMark);
  }
  std::vector<std::pair<const practice::Question*, practice::Answer>> answers;
  bool all_hold = true;
  for (const practice::Question* question : questions) {
    answers.emplace_back(question, question->answer({.full = line.full, .variant = line.variant}));
    all_hold = all_hold && practice::all_hold(answers.back().second);
    print_result(practice::answer_text(*question, answers.back().second));
  }
  if (!line.out.empty()) {
    train::on_stop_signals(SIG_IGN);  // it is done: a page is written whole
    write_file_atomically(line.out, practice::answer_page(answers));
  }
  return all_hold ? 0 : 1;
}

}  // namespace lathe::app
