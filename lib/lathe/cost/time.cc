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
    const auto rates = [&](const std::string& suffix) {
      return MachineSpeed::Rates{object.number("gemm_flops" + suffix),
                                 object.number("memory_bytes_per_second" + suffix)};
    };
    const MachineSpeed speed{rates("_of_one_thread"), rates(""),
                             static_cast<int>(object.integer("threads", 1, 1 << 16)),
                             object.integer("process_base_bytes", 0, INT64_MAX)};
    const auto measured = [](const MachineSpeed::Rates& rates) {
      return rates.gemm_flops > 0 && rates.memory_bytes_per_second > 0;
    };
    if (measured(speed.one_thread) && measured(speed.all_threads)) return speed;
  } catch (const Error&) {
    // As if it had not run.
  }
  return std::nullopt;
}

std::optional<double> estimate_seconds(const Plan& plan, const std::optional<MachineSpeed>& speed) {
  if (!speed) return std::nullopt;
  const bool fewer = plan.threads > 0 && plan.threads < speed->threads;
  const double part = fewer ? static_cast<double>(plan.threads - 1) / static_cast<double>(speed->threads - 1) : 1;
  const auto between = [part](double one, double all) { return one + part * (all - one); };
  return plan.flops.total() / between(speed->one_thread.gemm_flops, speed->all_threads.gemm_flops) +
         plan.moved_bytes /
             between(speed->one_thread.memory_bytes_per_second, speed->all_threads.memory_bytes_per_second);
}

}  // namespace lathe::cost
