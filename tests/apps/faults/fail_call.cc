// Preloaded into a program under test: counts its calls that write below a directory, and lets one of them fail.
//   LATHE_FAULT_DIRECTORY  only files below it count
//   LATHE_FAULT            N:KIND  call number N (from 1) fails: ENOSPC, EIO or short (half of a write)
//   LATHE_FAULT_LOG        gets one line per counted call: its name and path
//   LATHE_FAIL_ALLOCATION  N: from number N (from 1) no aligned allocation, as small tensors are, succeeds
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

template <typename Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string path_of(int descriptor) {
  char target[4096];
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  const ssize_t length = ::readlink(link.c_str(), target, sizeof target);
  return length < 0 ? "" : std::string(target, static_cast<size_t>(length));
}

enum class Fault { None, Short, Errno };

// Whether this call is the one that fails; sets errno then.
Fault next_call(const char* name, const std::string& path) {
  static const std::string directory = environment("LATHE_FAULT_DIRECTORY"), plan = environment("LATHE_FAULT"),
                           log = environment("LATHE_FAULT_LOG");
  static std::atomic<long> count{0};
  if (directory.empty() || path.rfind(directory, 0) != 0) return Fault::None;
  const long number = ++count;
  if (!log.empty()) {
    const std::string line = std::string(name) + " " + path + "\n";
    const int descriptor = real<int(const char*, int, ...)>("open")(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0666);
    (void)!real<ssize_t(int, const void*, size_t)>("write")(descriptor, line.data(), line.size());
    ::close(descriptor);
  }
  const size_t colon = plan.find(':');
  if (colon == std::string::npos || std::atol(plan.c_str()) != number) return Fault::None;
  const std::string kind = plan.substr(colon + 1);
  if (kind == "short" && std::strcmp(name, "write") == 0) return Fault::Short;
  errno = kind == "ENOSPC" ? ENOSPC : EIO;
  return Fault::Errno;
}

}  // namespace

extern "C" {

ssize_t write(int descriptor, const void* data, size_t size) {
  const auto call = real<ssize_t(int, const void*, size_t)>("write");
  switch (next_call("write", path_of(descriptor))) {
    case Fault::None:
      return call(descriptor, data, size);
    case Fault::Short:
      return call(descriptor, data, (size + 1) / 2);
    case Fault::Errno:
      break;
  }
  return -1;
}

int posix_memalign(void** pointer, size_t alignment, size_t size) {
  static const long first = std::atol(environment("LATHE_FAIL_ALLOCATION").c_str());
  static std::atomic<long> count{0};
  if (first > 0 && ++count >= first) return ENOMEM;
  return real<int(void**, size_t, size_t)>("posix_memalign")(pointer, alignment, size);
}

int fsync(int descriptor) {
  return next_call("fsync", path_of(descriptor)) == Fault::None ? real<int(int)>("fsync")(descriptor) : -1;
}

int rename(const char* from, const char* to) {
  return next_call("rename", to) == Fault::None ? real<int(const char*, const char*)>("rename")(from, to) : -1;
}

int mkdir(const char* path, mode_t mode) {
  return next_call("mkdir", path) == Fault::None ? real<int(const char*, mode_t)>("mkdir")(path, mode) : -1;
}

static int open_with(const char* name, const char* path, int flags, va_list rest) {
  const mode_t mode = (flags & O_CREAT) != 0 ? static_cast<mode_t>(va_arg(rest, unsigned)) : 0;
  if ((flags & O_CREAT) != 0 && next_call("open", path) != Fault::None) return -1;
  return real<int(const char*, int, ...)>(name)(path, flags, mode);
}

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const int descriptor = open_with("open", path, flags, rest);
  va_end(rest);
  return descriptor;
}

int open64(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const int descriptor = open_with("open64", path, flags, rest);
  va_end(rest);
  return descriptor;
}

}  // extern "C"
