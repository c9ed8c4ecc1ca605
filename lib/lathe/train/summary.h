#pragma once

#include <cstdint>
#include <string>

#include "lathe/base/json.h"
#include "lathe/cost/plan.h"
#include "lathe/train/run_state.h"
#include "lathe/train/task.h"

namespace lathe::train {

/// What decides the bits of a run beside recipe and data: LibTorch, kernels, who multiplies, threads.
std::string bits_decided_by();

/// CPU seconds that a run spent beside its steps, and the seconds that it waited for checkpoints.
struct Overheads {
  double metrics_cpu = 0, checkpoints_cpu = 0, checkpoint_stall = 0;
};

/// What is resident before the first step, less the model: the program, the data, and the libraries with what a
/// first product and a first backward pass make them load. Gives back what reading the data has left behind.
int64_t measure_base_bytes();

/// Of run.json, what `lathe report` shows beside the metrics.
Json run_summary(const RunState& state, Task& task, const cost::Plan& plan);
/// And what the process has measured of its own steps.
Json measured_by_process(Task& task, int64_t base_bytes, const Overheads& overheads);

}  // namespace lathe::train
