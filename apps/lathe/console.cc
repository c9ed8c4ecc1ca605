#include "console.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <new>

#include "lathe/base/files.h"
#include "lathe/base/text.h"

namespace lathe::app {

void print_result(const std::string& text) {
  std::cout << text;
  std::cout.flush();
  if (!std::cout) throw Error(ErrorKind::Run, Diagnostic{"standard output", 0, 0, "", "cannot be written", ""});
}

void print_error(const std::string& message) { std::cerr << "error: " + message + "\n"; }
void print_warning(const std::string& message) { std::cerr << "warning: " + printable(message) + "\n"; }
void print_note(const std::string& message) { std::cerr << printable(message) + "\n"; }

bool stderr_is_terminal() { return ::isatty(STDERR_FILENO) != 0; }

size_t stderr_width() {
  struct winsize size {};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

void prepare_process() {
  for (int descriptor = 0; descriptor <= 2; ++descriptor) {
    if (::fcntl(descriptor, F_GETFD) < 0) (void)!::open("/dev/null", O_RDWR);
  }
  std::signal(SIGXFSZ, SIG_IGN);
}

void require_absent(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(std::filesystem::symlink_status(path, ignored))) return;
  throw Error(ErrorKind::Config,
              Diagnostic{path, 0, 0, "", "exists already", "choose another name: nothing is overwritten"});
}

void require_replaceable(const std::string& path, const std::string& extension, const std::string& mark) {
  constexpr uint64_t kHeadBytes = 1024;
  std::error_code ignored;
  if (std::filesystem::is_regular_file(path, ignored)) {
    if (std::filesystem::is_empty(path, ignored)) return;
    const bool named = std::filesystem::path(path).extension() == extension;
    if (named && read_file_head(path, kHeadBytes).bytes.find(mark) != std::string::npos) return;
  }
  require_absent(path);
}

void require_no_input(const std::string& path, const std::vector<std::string>& inputs) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (!fs::exists(fs::symlink_status(path, ignored))) return;
  // What a rename replaces: the name itself, not what a link points to.
  const fs::path target = fs::weakly_canonical(fs::absolute(path).parent_path()) / fs::path(path).filename();
  for (const std::string& input : inputs) {
    const fs::path known = fs::weakly_canonical(input);
    const auto [end, rest] = std::mismatch(known.begin(), known.end(), target.begin(), target.end());
    if (!input.empty() && end == known.end())
      throw Error(ErrorKind::Config, Diagnostic{path, 0, 0, "", "is read here", "choose another name for the output"});
  }
}

void require_writable(const std::string& path) {
  const auto refuse = [](const std::string& place, const char* problem) {
    throw Error(ErrorKind::Config, Diagnostic{place, 0, 0, "", problem, ""});
  };
  std::error_code ignored;
  const std::string parent = std::filesystem::path(path).parent_path().string(), folder = parent.empty() ? "." : parent;
  if (std::filesystem::is_directory(path, ignored)) refuse(path, "expected a file's name, is a directory");
  if (!std::filesystem::is_directory(folder, ignored)) refuse(folder, "is no directory to write into");
  if (::access(folder.c_str(), W_OK | X_OK) != 0) refuse(folder, "is a directory that cannot be written");
  try {
    const AtomicFile attempt(path);  // /proc allows everything, and then no file
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::Run) refuse(folder, "is a directory that cannot be written");
    throw;
  }
}

int report(const Error& error) {
  constexpr size_t kMostLines = 20;
  const auto& diagnostics = error.diagnostics();
  const size_t shown = std::min(diagnostics.size(), kMostLines);
  for (size_t i = 0; i < shown; ++i) print_error(printable(diagnostics[i].to_string()));
  if (shown < diagnostics.size()) print_note(std::to_string(diagnostics.size() - shown) + " more mistakes like these");
  return error.exit_code();
}

int run_reporting(const std::function<int()>& action, const std::function<int(const std::exception&)>& other) {
  try {
    return action();
  } catch (const Error& error) {
    return report(error);
  } catch (const std::filesystem::filesystem_error& error) {
    const bool full = error.code() == std::errc::no_space_on_device;
    print_error(printable(error.path1().string() + ": " + error.code().message()));
    return static_cast<int>(full ? ErrorKind::Resource : ErrorKind::Data);
  } catch (const std::bad_alloc&) {
    print_error("not enough memory");
    return static_cast<int>(ErrorKind::Resource);
  } catch (const std::exception& error) {
    if (const int code = other ? other(error) : -1; code >= 0) return code;
    print_error("internal error: " + printable(error.what()) + " (please report it with the output of lathe doctor)");
    return static_cast<int>(ErrorKind::Internal);
  }
}

}  // namespace lathe::app
