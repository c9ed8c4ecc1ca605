#pragma once

#include "command_line.h"

/// The verbs of lathe-torch. Each returns an exit code or throws.
namespace lathe::app {

int run_train(const CommandLine& line);
int run_eval(const CommandLine& line);
int run_predict(const CommandLine& line);
int run_logits(const CommandLine& line);
int run_quantize(const CommandLine& line);
int run_merge(const CommandLine& line);
int run_upcycle(const CommandLine& line);
int run_practice(const CommandLine& line);
/// SIGINT, SIGTERM and SIGHUP end the process with one line and code 75.
void end_practice_on_stop_signals();
/// `lathe plan --measure`.
int run_measured_plan(const CommandLine& line);
/// What only a process with LibTorch knows, as one JSON line for `lathe doctor`.
int run_torch_doctor(const CommandLine& line);

}  // namespace lathe::app
