#include <c10/util/Exception.h>

#include <map>
#include <string>

#include "console.h"
#include "lathe/base/text.h"
#include "lathe/train/signals.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

// LibTorch's own exceptions: too little memory, a broken contract of an operator.
int report_torch_error(const std::exception& error, bool debug) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  if (torch_error == nullptr) return -1;
  const bool memory =
      dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
      std::string(torch_error->what_without_backtrace()).find("DefaultCPUAllocator") != std::string::npos;
  print_error(memory ? "not enough memory (a smaller training.batch_size or model.max_length needs less)"
                     : printable(torch_error->what_without_backtrace()));
  if (debug) print_note(torch_error->what());
  return static_cast<int>(memory ? ErrorKind::Resource : ErrorKind::Run);
}

int run(const CommandLine& line) {
  static const std::map<std::string, int (*)(const CommandLine&)> kVerbs = {
      {"train", run_train},        {"eval", run_eval},           {"predict", run_predict},   {"logits", run_logits},
      {"plan", run_measured_plan}, {"doctor", run_torch_doctor}, {"quantize", run_quantize}, {"merge", run_merge},
      {"practice", run_practice},  {"upcycle", run_upcycle}};
  const auto found = kVerbs.find(line.verb);
  if (found == kVerbs.end()) {
    throw Error(ErrorKind::Config,
                Diagnostic{"lathe-torch", 0, 0, "", "runs only what lathe hands over", "use lathe " + line.verb});
  }
  return found->second(line);
}

}  // namespace
}  // namespace lathe::app

int main(int argc, char** argv) {
  lathe::app::prepare_process();
  lathe::app::CommandLine line;
  if (const auto code = lathe::app::parse_command_line(argc, argv, line)) return *code;
  // lathe has blocked the signals that stop a run: only a training run must answer them with a checkpoint.
  if (line.verb == "train") {
    lathe::train::install_stop_handlers();
  } else {
    if (line.verb == "practice") lathe::app::end_practice_on_stop_signals();
    lathe::train::unblock_stop_signals();
  }
  return lathe::app::run_reporting(
      [&] { return lathe::app::run(line); },
      [&](const std::exception& error) { return lathe::app::report_torch_error(error, line.debug); });
}
