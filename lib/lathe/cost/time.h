#pragma once

#include <optional>

#include "lathe/cost/plan.h"

namespace lathe::cost {

/// How fast this machine is, as `lathe doctor` measured it and left it in ${cache}/machine.json.
struct MachineSpeed {
  double gemm_flops = 0;               ///< float32 products, per second
  double memory_bytes_per_second = 0;  ///< read and written
  int threads = 0;                     ///< that did it; 0: unknown
};

/// None when doctor has not run, or its file cannot be read.
std::optional<MachineSpeed> measured_speed();

/// Seconds of one optimizer step: the operations of the products at the speed of products, and everything that is
/// written, and read once, at the speed of memory. With fewer threads than were measured both are slower in
/// proportion. None without a measured speed.
std::optional<double> estimate_seconds(const Plan& plan, const std::optional<MachineSpeed>& speed);

}  // namespace lathe::cost
