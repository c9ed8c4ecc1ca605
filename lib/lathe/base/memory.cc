#include "lathe/base/memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace lathe {
namespace {

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

// The number in a file, or after `key` in it; unknown for "max", for nothing, and for what is no number.
int64_t number_in(const std::string& path, const std::string& key = "") {
  std::ifstream stream(path);
  for (std::string word; stream >> word;) {
    if (!key.empty()) {
      if (word != key || !(stream >> word)) continue;
    }
    try {
      return std::stoll(word);
    } catch (const std::exception&) {
      return kUnknown;
    }
  }
  return kUnknown;
}

int64_t left(int64_t limit, int64_t used) {
  return limit == kUnknown || used == kUnknown ? kUnknown : std::max<int64_t>(0, limit - used);
}

// Version 2 of control groups: the process's own group and every one above it. Version 1: the memory controller's
// root as the process sees it.
int64_t control_group_bytes() {
  int64_t least = left(number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
                       number_in("/sys/fs/cgroup/memory/memory.usage_in_bytes"));
  std::ifstream stream("/proc/self/cgroup");
  for (std::string line; std::getline(stream, line);) {
    if (!line.starts_with("0::")) continue;
    for (std::string group = line.substr(3);; group.erase(group.rfind('/'))) {
      const std::string folder = "/sys/fs/cgroup" + group;
      least = std::min(least, left(number_in(folder + "/memory.max"), number_in(folder + "/memory.current")));
      if (group.rfind('/') == std::string::npos) break;
    }
  }
  return least;
}

int64_t address_space_bytes() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnknown;
  const int64_t kilobytes = number_in("/proc/self/status", "VmSize:");
  return left(static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, kUnknown)),
              kilobytes == kUnknown ? 0 : kilobytes * 1024);
}

}  // namespace

int64_t available_memory_bytes() {
  const int64_t kilobytes = number_in("/proc/meminfo", "MemAvailable:");
  const int64_t system = kilobytes == kUnknown ? kUnknown : kilobytes * 1024;
  return std::min({system, control_group_bytes(), address_space_bytes()});
}

int64_t resident_memory_bytes() {
  const int64_t kilobytes = number_in("/proc/self/status", "VmRSS:");
  return kilobytes == kUnknown ? 0 : kilobytes * 1024;
}

int64_t peak_resident_memory_bytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

}  // namespace lathe
