#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/native/DispatchStub.h>
#include <torch/version.h>

#include <fstream>
#include <string>

#include "console.h"
#include "lathe/base/json.h"
#include "lathe/nn/kernels.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

// Resident bytes of this process before it has done anything: what every run pays.
int64_t resident_bytes() {
  std::ifstream stream("/proc/self/status");
  for (std::string line; std::getline(stream, line);) {
    if (line.starts_with("VmRSS:")) return std::stoll(line.substr(6)) * 1024;
  }
  return 0;
}

}  // namespace

int run_torch_doctor(const CommandLine&) {
  const Json facts = {{"version", TORCH_VERSION},
                      {"threads", at::get_num_threads()},
                      {"capability", at::get_cpu_capability()},
                      {"kernels", nn::kernels::chosen_target()},
                      {"process_base_bytes", resident_bytes()}};
  print_result(facts.dump() + "\n");
  return 0;
}

}  // namespace lathe::app
