#include "lathe/train/summary.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <torch/version.h>

#include <utility>

#include "lathe/adapters/lora.h"
#include "lathe/base/clock_meter.h"
#include "lathe/base/memory.h"
#include "lathe/base/processor.h"
#include "lathe/base/version.h"
#include "lathe/nn/gemm.h"
#include "lathe/nn/kernels.h"
#include "lathe/train/memory_meter.h"

namespace lathe::train {

std::string bits_decided_by() {
  return std::string("LibTorch ") + TORCH_VERSION + ", " + at::get_cpu_capability() + ", kernels " +
         nn::kernels::chosen_target() + ", products " + (nn::uses_onednn(at::kFloat) ? "oneDNN" : "MKL") + ", " +
         std::to_string(at::get_num_threads()) + " threads";
}

int64_t measure_base_bytes() {
  {
    // As large as a step's: the libraries' buffers grow with the product, up to this size.
    const at::Tensor a = at::ones({2048, 512}), b = at::ones({512, 1536});
    nn::gemm(a, b);
  }
  {
    const at::AutoGradMode grad_on(true);
    const at::Tensor x = at::ones({8, 64}).requires_grad_();
    at::layer_norm(at::linear(x, at::ones({64, 64})), {64}).softmax(-1).sum().backward();
  }
  MemoryMeter::reset_peak();
  MemoryMeter::trim();
  return resident_memory_bytes() - MemoryMeter::live_bytes();
}

Json run_summary(const RunState& state, Task& task, const cost::Plan& plan) {
  Json norms = Json::object();
  for (const auto& [path, norm] : adapters::update_norms(task.model())) norms[path] = norm;
  Json planned_peak = Json::object();
  for (const auto& [part, bytes] : plan.memory.at_peak)
    if (bytes > 0) planned_peak[part + "_bytes"] = cost::whole(bytes);
  return {
      {"environment", {{"lathe", version()}, {"processor", processor_name()}, {"bits decided by", state.environment}}},
      {"nonfinite_steps", state.nonfinite},
      {"planned", {{"peak_bytes", static_cast<int64_t>(plan.memory.peak)}}},
      {"planned_peak", std::move(planned_peak)},
      {"adapter_norms", std::move(norms)}};
}

Json measured_by_process(Task& task, int64_t base_bytes, const Overheads& overheads) {
  return {{"measured",
           {{"peak_bytes", MemoryMeter::peak_bytes() + mapped_bytes(task.model())},
            {"base_bytes", base_bytes},
            {"peak_rss_bytes", peak_resident_memory_bytes()}}},
          {"overheads",
           {{"process_cpu_seconds", ClockMeter::seconds(CLOCK_PROCESS_CPUTIME_ID)},
            {"metrics_cpu_seconds", overheads.metrics_cpu},
            {"checkpoints_cpu_seconds", overheads.checkpoints_cpu},
            {"checkpoint_stall_seconds", overheads.checkpoint_stall}}}};
}

}  // namespace lathe::train
