// Forward and backward of a mixture-of-experts block in float32, or of a dense MLP of the same active size: prints one
// JSON line with the own CPU and wall seconds of each step, the peak resident memory, and what of it no code can save:
// the process, weights and their gradients.
//   moe_block mixtral|qwen3 moe|dense STEPS
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <torch/utils.h>

#include <chrono>
#include <cstdio>
#include <string>

#include "lathe/base/clock_meter.h"
#include "lathe/base/memory.h"
#include "lathe/nn/moe.h"
#include "lathe/train/memory_meter.h"

namespace {

constexpr int64_t kWidth = 1024, kTokens = 2048;

double own_cpu_seconds() { return lathe::ClockMeter::seconds(CLOCK_PROCESS_CPUTIME_ID); }

void fill(torch::nn::Module& module) {
  torch::manual_seed(0);
  for (at::Tensor& parameter : module.parameters()) parameter.set_data(at::empty(parameter.sizes()).normal_(0, 0.02));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  lathe::train::MemoryMeter::install();  // the allocator of the driver
  const int64_t process = lathe::resident_memory_bytes();
  using namespace lathe::nn;
  const bool mixtral = std::string(argv[1]) == "mixtral", dense = std::string(argv[2]) == "dense";
  const int64_t hidden = mixtral ? 3584 : 768, num_experts = mixtral ? 8 : 64, top_k = mixtral ? 2 : 8;
  MoELayer block(TopKRouter(kWidth, num_experts, top_k).ptr(),
                 ExpertBank(ExpertBankOptions(num_experts, kWidth, dense ? 1 : hidden)).ptr());
  GatedMLP mlp(kWidth, dense ? hidden * top_k : 1);
  torch::nn::Module& model = dense ? static_cast<torch::nn::Module&>(*mlp) : *block;
  fill(model);
  const at::Tensor x = at::randn({kTokens, kWidth}).requires_grad_();
  std::string cpu, wall;
  for (int step = 0; step < std::stoi(argv[3]); ++step) {
    const auto start = std::chrono::steady_clock::now();
    const double cpu_before = own_cpu_seconds();
    for (at::Tensor& parameter : model.parameters()) parameter.mutable_grad().reset();
    x.mutable_grad().reset();
    (dense ? mlp->forward(x) : block->forward(x, {.training = true})).sum().backward();
    if (!dense) block->end_window();
    const char* comma = step == 0 ? "" : ", ";
    cpu += comma + std::to_string(own_cpu_seconds() - cpu_before);
    wall += comma + std::to_string(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  int64_t floor = process;
  for (const at::Tensor& parameter : model.parameters()) floor += 2 * static_cast<int64_t>(parameter.nbytes());
  std::printf("{\"cpu_s\": [%s], \"wall_s\": [%s], \"peak_rss_mib\": %ld, \"floor_mib\": %ld}\n", cpu.c_str(),
              wall.c_str(), lathe::peak_resident_memory_bytes() >> 20, floor >> 20);
  return 0;
}
