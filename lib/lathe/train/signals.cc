#include "lathe/train/signals.h"

#include <unistd.h>
#include <csignal>

namespace lathe::train {
namespace {

volatile std::sig_atomic_t requests = 0;
volatile std::sig_atomic_t checkpoint_requests = 0;

void on_stop_signal(int number) {
  requests = requests + 1;
  if (requests > 1) ::_exit(128 + number);
}

void on_checkpoint_signal(int) { checkpoint_requests = 1; }

}  // namespace

void on_stop_signals(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    ::sigaction(number, nullptr, &before);
    if (before.sa_handler != SIG_IGN) ::sigaction(number, &action, nullptr);
  }
}

void install_stop_handlers() {
  on_stop_signals(on_stop_signal);
  struct sigaction checkpoint {};
  checkpoint.sa_handler = on_checkpoint_signal;
  checkpoint.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR1, &checkpoint, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a closed terminal must not end a run
  unblock_stop_signals();
}

void unblock_stop_signals() {
  sigset_t stops;
  sigemptyset(&stops);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1}) sigaddset(&stops, number);
  ::sigprocmask(SIG_UNBLOCK, &stops, nullptr);
}

bool stop_requested() { return requests > 0; }

bool take_checkpoint_request() {
  if (checkpoint_requests == 0) return false;
  checkpoint_requests = 0;
  return true;
}

}  // namespace lathe::train
