#include "lathe/train/signals.h"

#include <unistd.h>
#include <csignal>

namespace lathe::train {
namespace {

volatile std::sig_atomic_t requests = 0;

void on_stop_signal(int number) {
  requests = requests + 1;
  if (requests > 1) ::_exit(128 + number);
}

}  // namespace

void install_stop_handlers() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  for (const int number : {SIGINT, SIGTERM}) ::sigaction(number, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a closed terminal must not end a run
  unblock_stop_signals();
}

void unblock_stop_signals() {
  sigset_t stops;
  sigemptyset(&stops);
  for (const int number : {SIGINT, SIGTERM}) sigaddset(&stops, number);
  ::sigprocmask(SIG_UNBLOCK, &stops, nullptr);
}

bool stop_requested() { return requests > 0; }

}  // namespace lathe::train
