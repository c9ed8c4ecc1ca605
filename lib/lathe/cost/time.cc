#include "lathe/cost/time.h"

#include <filesystem>

#include "lathe/base/error.h"
#include "lathe/config/bind.h"

namespace lathe::cost {

std::optional<MachineSpeed> measured_speed() {
  const std::string file = config::cache_directory() + "/machine.json";
  std::error_code unknown;
  if (!std::filesystem::exists(file, unknown)) return std::nullopt;
  try {
    const Json json = read_json_file(file, 1 << 16);
    const JsonObject object(json, file);
    const MachineSpeed speed{object.number("gemm_flops"), object.number("memory_bytes_per_second"),
                             static_cast<int>(object.integer("threads", 0, 1 << 16, 0))};
    if (speed.gemm_flops > 0 && speed.memory_bytes_per_second > 0) return speed;
  } catch (const Error&) {
    // As if it had not run.
  }
  return std::nullopt;
}

std::optional<double> estimate_seconds(const Plan& plan, const std::optional<MachineSpeed>& speed) {
  if (!speed) return std::nullopt;
  const bool fewer = plan.threads > 0 && plan.threads < speed->threads;
  const double slowdown = fewer ? static_cast<double>(speed->threads) / static_cast<double>(plan.threads) : 1;
  return slowdown * (plan.flops.total() / speed->gemm_flops + plan.moved_bytes / speed->memory_bytes_per_second);
}

}  // namespace lathe::cost
