#include "lathe/base/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "lathe/base/error.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  ~Descriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

std::string reason() { return std::strerror(errno); }

[[noreturn]] void throw_write_error(const fs::path& path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  throw Error(full ? ErrorKind::Resource : ErrorKind::Run,
              Diagnostic{path.string(), 0, 0, "", std::string("cannot write: ") + std::strerror(error),
                         error == EFBIG ? "ulimit -f raises the limit"
                         : full         ? "free some disk space or choose another directory"
                                        : ""});
}

int open_for_reading(const fs::path& path, uint64_t& size) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO must not block
  if (descriptor < 0) throw data_error(path.string(), errno == ENOENT ? "no such file" : "cannot open: " + reason());
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    const bool directory = S_ISDIR(status.st_mode);
    ::close(descriptor);
    throw data_error(path.string(), Diagnostic::expected("a file", directory ? "a directory" : "something else"));
  }
  size = static_cast<uint64_t>(status.st_size);
  return descriptor;
}

std::string read_up_to(int descriptor, uint64_t size, const fs::path& path) {
  std::string text(size, '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(descriptor, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw data_error(path.string(), "cannot read: " + reason());
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

void sync_path(const fs::path& path, int flags) {
  const Descriptor descriptor(::open(path.c_str(), flags | O_CLOEXEC));
  if (descriptor.get() < 0 || ::fsync(descriptor.get()) != 0) throw_write_error(path, errno);
}

void sync_parent(const fs::path& path) {
  const fs::path parent = path.parent_path();
  sync_path(parent.empty() ? fs::path(".") : parent, O_RDONLY | O_DIRECTORY);
}

std::string temporary_suffix() { return kTemporaryMark + std::to_string(::getpid()); }

}  // namespace

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  uint64_t size = 0;
  const Descriptor descriptor(open_for_reading(path, size));
  size_ = size;
  if (size_ == 0) return;
  // Without MAP_NORESERVE the kernel refuses to map, for writing, a file larger than memory.
  const int flags = MAP_PRIVATE | MAP_NORESERVE;
  void* address = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, flags, descriptor.get(), 0);
  if (address == MAP_FAILED) throw data_error(path.string(), "cannot map: " + reason());
  data_ = static_cast<std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

std::string read_file(const fs::path& path, uint64_t max_bytes) {
  uint64_t size = 0;
  const Descriptor descriptor(open_for_reading(path, size));
  if (size > max_bytes) {
    throw data_error(path.string(), Diagnostic::expected("at most " + std::to_string(max_bytes) + " bytes",
                                                         std::to_string(size) + " bytes"));
  }
  return read_up_to(descriptor.get(), size, path);
}

FileHead read_file_head(const fs::path& path, uint64_t max_bytes) {
  FileHead head;
  const Descriptor descriptor(open_for_reading(path, head.file_size));
  head.bytes = read_up_to(descriptor.get(), std::min(head.file_size, max_bytes), path);
  return head;
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), temporary_(path_.string() + temporary_suffix()) {
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0 && !S_ISREG(status.st_mode))
    throw Error(ErrorKind::Config,
                Diagnostic{path_.string(), 0, 0, "", "is not a regular file; it stays as it is", ""});
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw_write_error(path_, errno);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(descriptor_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_write_error(path_, errno);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) throw_write_error(path_, errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) throw_write_error(path_, errno);
  ::close(std::exchange(descriptor_, -1));
  sync_parent(path_);
}

void write_file_atomically(const fs::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void make_directories(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) throw_write_error(path, error.value());
}

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) throw_write_error(path, error.value());
}

namespace {

// What is at `path` gives way to `whole`, and stays where that fails.
void put_in_place(const fs::path& whole, const fs::path& path) {
  const fs::path old = whole.string() + "-old";
  const bool replaces = ::rename(path.c_str(), old.c_str()) == 0;
  if (!replaces && errno != ENOENT) throw_write_error(path, errno);
  if (::rename(whole.c_str(), path.c_str()) != 0) {
    const int error = errno;
    if (replaces) (void)::rename(old.c_str(), path.c_str());
    throw_write_error(path, error);
  }
  std::error_code ignored;
  if (replaces) fs::remove_all(old, ignored);
}

}  // namespace

void publish_directory(const fs::path& path, const std::function<void(const fs::path&)>& fill) {
  const fs::path temporary = path.string() + temporary_suffix();
  std::error_code ignored;
  fs::remove_all(temporary, ignored);
  std::error_code error;
  if (!fs::create_directories(temporary, error) || error) throw_write_error(path, error ? error.value() : EEXIST);
  try {
    fill(temporary);
    for (const auto& entry : fs::recursive_directory_iterator(temporary)) {
      if (entry.is_regular_file()) sync_path(entry.path(), O_RDONLY);
    }
    sync_path(temporary, O_RDONLY | O_DIRECTORY);
    put_in_place(temporary, path);
  } catch (...) {
    fs::remove_all(temporary, ignored);
    throw;
  }
  sync_parent(path);
}

FileLock::FileLock(const fs::path& path) : descriptor_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) throw_write_error(path, errno);
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
  ::close(std::exchange(descriptor_, -1));
  throw Error(ErrorKind::Config,
              Diagnostic{path.parent_path().string(), 0, 0, "", "another process is using this run directory",
                         "wait for it or choose another output.dir"});
}

FileLock::~FileLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace lathe
