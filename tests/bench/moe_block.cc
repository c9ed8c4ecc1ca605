// Forward and backward of a mixture-of-experts block in float32, or of a dense MLP of the same active size: for each
// line of stdin one step, and a JSON line with its own CPU and wall seconds; then one with the peak resident memory,
// and what of it no code can save: the process, weights and their gradients.
//   moe_block mixtral|qwen3 moe|dense
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <torch/utils.h>

#include <chrono>
#include <cstdio>
#include <iostream>
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
  if (argc != 3) return 2;
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
  for (std::string line; std::getline(std::cin, line);) {
    const auto start = std::chrono::steady_clock::now();
    const double cpu_before = own_cpu_seconds();
    for (at::Tensor& parameter : model.parameters()) parameter.mutable_grad().reset();
    x.mutable_grad().reset();
    // As in Python, the output is gone when the backward pass begins.
    const at::Tensor loss = (dense ? mlp->forward(x) : block->forward(x, {.training = true})).sum();
    loss.backward();
    if (!dense) block->end_window();
    std::printf("{\"cpu_s\": %.6f, \"wall_s\": %.6f}\n", own_cpu_seconds() - cpu_before,
                std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    std::fflush(stdout);
  }
  int64_t floor = process;
  for (const at::Tensor& parameter : model.parameters()) floor += 2 * static_cast<int64_t>(parameter.nbytes());
  std::printf("{\"peak_rss_mib\": %ld, \"floor_mib\": %ld}\n", lathe::peak_resident_memory_bytes() >> 20, floor >> 20);
  return 0;
}
