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

std::string with_long_run() {
  std::vector<std::string> ids;
  for (const practice::Question* question : practice::questions()) {
    if (question->has_long_run) ids.emplace_back(question->id);
  }
  return join(ids, ", ");
}

void on_stop_signals(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    ::sigaction(number, nullptr, &before);
    if (before.sa_handler != SIG_IGN) ::sigaction(number, &action, nullptr);  // nohup wants it ignored
  }
}

void leave(int) {
  constexpr char kLine[] = "error: lathe practice: stopped by a signal, nothing is saved\n";
  (void)!::write(STDERR_FILENO, kLine, sizeof(kLine) - 1);
  ::_exit(static_cast<int>(ErrorKind::Interrupted));
}

}  // namespace

void end_practice_on_stop_signals() { on_stop_signals(leave); }

int run_practice(const CommandLine& line) {
  if (line.recipe.empty()) {
    std::string list;
    for (const practice::Question* question : practice::questions())
      list += std::string(question->id) + "  " + question->title + "\n";
    print_result(list);
    return 0;
  }
  const auto questions = chosen(line.recipe);
  const auto is_long = [](const practice::Question* question) { return question->has_long_run; };
  if (line.full && std::none_of(questions.begin(), questions.end(), is_long))
    throw Error(ErrorKind::Config,
                Diagnostic{"lathe practice", 0, 0, "", quote(line.recipe) + " has no long run (--full)",
                           "questions with one: " + with_long_run()});
  if (!line.out.empty()) {
    require_replaceable(line.out, ".html", report::kPageMark);
    require_writable(line.out);
  }
  std::vector<std::pair<const practice::Question*, practice::Answer>> answers;
  bool all_hold = true;
  for (const practice::Question* question : questions) {
    answers.emplace_back(question, question->answer({.full = line.full}));
    all_hold = all_hold && practice::all_hold(answers.back().second);
    print_result(practice::answer_text(*question, answers.back().second));
  }
  if (!line.out.empty()) {
    on_stop_signals(SIG_IGN);  // it is done: a page is written whole
    write_file_atomically(line.out, practice::answer_page(answers));
  }
  return all_hold ? 0 : 1;
}

}  // namespace lathe::app
