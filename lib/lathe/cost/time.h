#pragma once

#include <optional>

#include "lathe/cost/plan.h"

namespace lathe::cost {

/// How fast this machine is, as `lathe doctor` measured it and left it in ${cache}/machine.json.
struct MachineSpeed {
  struct Rates {
    double gemm_flops = 0;               ///< float32 products, per second
    double memory_bytes_per_second = 0;  ///< read and written
  };
  Rates one_thread, all_threads;
  int threads = 1;                 ///< all
  int64_t process_base_bytes = 0;  ///< what a process of LibTorch holds besides tensors
};

/// None when doctor has not run, or its file cannot be read.
std::optional<MachineSpeed> measured_speed();

/// Seconds of one optimizer step: the operations of the products at the speed of products, and everything that is
/// written, and read once, at the speed of memory; between one thread and all of them in proportion. None without a
/// measured speed.
std::optional<double> estimate_seconds(const Plan& plan, const std::optional<MachineSpeed>& speed);

}  // namespace lathe::cost
