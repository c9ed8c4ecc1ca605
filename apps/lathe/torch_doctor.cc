#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>
#include <system_error>

#include "console.h"
#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/json.h"
#include "lathe/config/bind.h"
#include "lathe/nn/gemm.h"
#include "lathe/nn/kernels.h"
#include "lathe/train/summary.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

// The best of many runs of `action`, in seconds: on a busy machine few are undisturbed.
template <typename Action>
double best_seconds(Action action) {
  double best = 1e30;
  for (int run = 0; run < 25; ++run) {
    const auto start = std::chrono::steady_clock::now();
    action();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// Float32 products of 1024 x 1024 matrices, in operations per second.
double gemm_flops() {
  const at::Tensor a = at::ones({1024, 1024}), b = at::ones({1024, 1024});
  at::Tensor c = at::empty({1024, 1024});
  return 2.0 * 1024 * 1024 * 1024 / best_seconds([&] { nn::gemm_out(c, a, b); });
}

// Bytes read and written per second by copying 128 MiB.
double memory_bytes_per_second() {
  constexpr int64_t kElements = int64_t{32} << 20;
  const at::Tensor from = at::ones({kElements});
  at::Tensor to = at::empty({kElements});
  return 2.0 * static_cast<double>(from.nbytes()) / best_seconds([&] { to.copy_(from); });
}

// Where `lathe plan` looks for them; whether that worked.
bool save(const Json& speeds) {
  const std::string cache = config::cache_directory();
  std::error_code ignored;
  std::filesystem::create_directories(cache, ignored);
  try {
    write_file_atomically(cache + "/machine.json", speeds.dump() + "\n");
  } catch (const Error&) {
    return false;
  }
  return true;
}

}  // namespace

int run_torch_doctor(const CommandLine&) {
  const int64_t base = train::measure_base_bytes();  // what every run pays beside its tensors
  const double flops = gemm_flops();
  Json speeds = {{"gemm_flops", flops},
                 {"memory_bytes_per_second", memory_bytes_per_second()},
                 {"threads", at::get_num_threads()},
                 {"process_base_bytes", base}};
  at::set_num_threads(1);
  speeds["gemm_flops_of_one_thread"] = gemm_flops();
  speeds["memory_bytes_per_second_of_one_thread"] = memory_bytes_per_second();
  Json facts = {{"version", TORCH_VERSION},
                {"capability", at::get_cpu_capability()},
                {"kernels", nn::kernels::chosen_target()},
                {"products", nn::uses_onednn(at::kFloat) ? "oneDNN" : "MKL"},
                {"speeds_saved", save(speeds)}};
  facts.update(speeds);
  print_result(facts.dump() + "\n");
  return 0;
}

}  // namespace lathe::app
