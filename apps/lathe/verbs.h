#pragma once

#include "command_line.h"

/// The verbs that need no LibTorch. Each returns an exit code or throws.
namespace lathe::app {

int run_ls(const CommandLine& line);
int run_show(const CommandLine& line);
int run_cp(const CommandLine& line);
int run_validate(const CommandLine& line);
int run_tokenize(const CommandLine& line);
int run_inspect(const CommandLine& line);
int run_doctor(const CommandLine& line);
int run_report(const CommandLine& line);
int run_plan(const CommandLine& line);

/// The path of lathe-torch: beside this program, or in libexec when installed. Throws Error{Internal} when it is
/// missing.
std::string torch_program();
/// Becomes lathe-torch with the same arguments. Returns only on failure.
int hand_over(char** argv);

}  // namespace lathe::app
