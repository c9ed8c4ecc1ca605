#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "console.h"
#include "lathe/base/error.h"
#include "lathe/base/text.h"
#include "verbs.h"

namespace lathe::app {
namespace {

namespace fs = std::filesystem;

constexpr const char* kProgram = "lathe-torch";
// Read by the C library only at start: large pages save the page faults of big temporaries, about 8 % of a step.
constexpr const char* kTunables = "glibc.malloc.hugetlb=1";
// Read by libgomp only at start: how often a waiting thread looks before it sleeps. Its own 300,000 costs a busy
// machine up to five times the time of a step; this few costs an idle one nothing.
constexpr const char* kSpinCount = "1000";
// Below this LibTorch aborts while it is loaded, where nothing can be caught; measured, with a margin.
constexpr rlim_t kLeastAddressSpace = rlim_t{640} << 20;

void check_address_space() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur >= kLeastAddressSpace) return;
  throw Error(
      ErrorKind::Resource,
      Diagnostic{"virtual memory", 0, 0, "",
                 Diagnostic::expected("a limit of at least " + format_bytes(kLeastAddressSpace) + " for LibTorch alone",
                                      format_bytes(limit.rlim_cur)),
                 "ulimit -v raises it"});
}

}  // namespace

std::string torch_program() {
  const fs::path folder = fs::read_symlink("/proc/self/exe").parent_path();
  for (const fs::path& candidate : {folder / kProgram, folder.parent_path() / "libexec/lathe" / kProgram}) {
    if (fs::exists(candidate)) return candidate.string();
  }
  throw Error(ErrorKind::Internal, Diagnostic{(folder / kProgram).string(), 0, 0, "", "no such program",
                                              "the installation is not whole: build or install Lathe again"});
}

int hand_over(char** argv) {
  const std::string program = torch_program();
  check_address_space();
  ::setenv("GLIBC_TUNABLES", kTunables, 0);
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) ::setenv("GOMP_SPINCOUNT", kSpinCount, 0);
  // Held back until lathe-torch has its handlers: a Ctrl-C while LibTorch loads is not lost.
  sigset_t stops;
  sigemptyset(&stops);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1}) sigaddset(&stops, number);
  ::sigprocmask(SIG_BLOCK, &stops, nullptr);
  ::execv(program.c_str(), argv);
  print_error(program + ": cannot start: " + std::strerror(errno));
  return static_cast<int>(ErrorKind::Internal);
}

}  // namespace lathe::app
