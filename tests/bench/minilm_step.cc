// One LoRA training step of all-MiniLM-L6-v2 as a two-class classifier, as `lathe train` runs it: prints one JSON line
// with the own CPU and wall seconds of each step.
//   minilm_step MODEL ROWS.jsonl STEPS [DROPOUT]
#include <ATen/Parallel.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "lathe/base/clock_meter.h"
#include "lathe/base/memory.h"
#include "lathe/data/windows.h"
#include "lathe/train/classifier_task.h"
#include "lathe/train/memory_meter.h"
#include "lathe/train/step.h"

namespace {

double own_cpu_seconds() { return lathe::ClockMeter::seconds(CLOCK_PROCESS_CPUTIME_ID); }

std::string recipe_text(const std::string& model, const std::string& rows, const std::string& dropout) {
  return "model: {path: " + model + ", task: classification, max_length: 128" +
         (dropout.empty() ? "" : ", dropout: " + dropout) +
         "}\nadapter: {type: lora, rank: 8, alpha: 16, target_modules: [query, value]}\ndata: {train: " + rows +
         ", format: tokens, shuffle: false, labels: [\"0\", \"1\"]}\noptimizer: {lr: 0.001, schedule: constant, "
         "clip_grad_norm: 0}\n"
         "training: {max_steps: 1000, batch_size: 16}\noutput: {dir: unused}\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  using namespace lathe;
  train::MemoryMeter::install();  // the allocator of the driver
  const auto start = std::chrono::steady_clock::now();
  const recipe::Recipe recipe = recipe::parse(recipe_text(argv[1], argv[2], argc > 4 ? argv[4] : ""), "bench", "");
  const auto task = train::open_classifier_task(recipe);
  task->model().train();
  train::Stepper stepper(*task, recipe, 1000);
  data::Windows windows(task->num_samples(), 16, 1, false, 0);
  std::string cpu, wall, losses;
  double first = 0;
  const int steps = std::stoi(argv[3]);
  for (int step = 0; step < steps; ++step) {
    train::StepMetrics metrics;
    const double cpu_before = own_cpu_seconds();
    stepper.run(step, windows.window(step), metrics);
    const char* comma = step == 0 ? "" : ", ";
    cpu += comma + std::to_string(own_cpu_seconds() - cpu_before);
    wall += comma + std::to_string(metrics.seconds);
    losses += comma + std::to_string(metrics.loss);
    if (step == 0) first = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  std::printf(
      "{\"cpu_s\": [%s], \"wall_s\": [%s], \"losses\": [%s], \"to_first_step_s\": %.4f, \"peak_rss_mib\": %ld, "
      "\"threads\": %d}\n",
      cpu.c_str(), wall.c_str(), losses.c_str(), first, lathe::peak_resident_memory_bytes() >> 20,
      at::get_num_threads());
  return 0;
}
