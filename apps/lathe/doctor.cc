#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <thread>

#include "console.h"
#include "lathe/base/json.h"
#include "lathe/base/processor.h"
#include "lathe/base/text.h"
#include "lathe/base/version.h"
#include "lathe/config/bind.h"
#include "verbs.h"

namespace lathe::app {
namespace {

// The value after "KEY ... : " of a /proc file, or empty.
std::string proc_value(const char* file, const std::string& key) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    if (!line.starts_with(key)) continue;
    const size_t colon = line.find(':');
    const size_t start = line.find_first_not_of(" \t", colon + 1);
    return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

int64_t kilobytes(const std::string& text) { return text.empty() ? 0 : std::stoll(text) * 1024; }

// Runs lathe-torch as a child: what it prints, or why it did not load.
Json ask_torch() {
  std::string command = torch_program();
  std::array<int, 2> ends{};
  if (::pipe(ends.data()) != 0) return {{"error", "cannot make a pipe"}};
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], STDOUT_FILENO);
    ::dup2(ends[1], STDERR_FILENO);
    ::close(ends[0]);
    ::execl(command.c_str(), command.c_str(), "doctor", static_cast<char*>(nullptr));
    ::_exit(127);
  }
  ::close(ends[1]);
  std::string output;
  std::array<char, 4096> buffer{};
  for (ssize_t n = 0; (n = ::read(ends[0], buffer.data(), buffer.size())) > 0;)
    output.append(buffer.data(), static_cast<size_t>(n));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return parse_json(output, "lathe-torch");
  return {{"error", "lathe-torch does not load: " + printable(output.substr(0, 500))}};
}

}  // namespace

int run_doctor(const CommandLine& line) {
  Json facts = {{"lathe", version()},
                {"processor", processor_name()},
                {"cores", std::thread::hardware_concurrency()},
                {"memory_bytes", kilobytes(proc_value("/proc/meminfo", "MemTotal"))},
                {"memory_available_bytes", kilobytes(proc_value("/proc/meminfo", "MemAvailable"))},
                {"cache", config::cache_directory()}};
  facts["torch"] = ask_torch();
  if (line.json) {
    print_result(facts.dump() + "\n");
  } else {
    const auto print = [](const Json& object, const std::string& indent) {
      for (const auto& [key, value] : object.items()) {
        if (!value.is_object())
          print_result(indent + key + ": " + (value.is_string() ? printable(value.get<std::string>()) : value.dump()) +
                       "\n");
      }
    };
    print(facts, "");
    print_result("torch:\n");
    print(facts["torch"], "  ");
  }
  return facts["torch"].contains("error") ? 1 : 0;
}

}  // namespace lathe::app
