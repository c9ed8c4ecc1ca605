#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace lathe {

/// A whole file, mapped privately: writes to the bytes copy the page and never reach the file.
/// Throws Error{Data} when the file is missing, not a regular file or unreadable. An empty file maps to an empty span.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// The bytes of a regular file of at most `max_bytes`. Throws Error{Data} for a missing file, a directory, a larger
/// file.
std::string read_file(const std::filesystem::path& path, uint64_t max_bytes);

struct FileHead {
  std::string bytes;
  uint64_t file_size = 0;
};

/// The first bytes of a regular file, at most `max_bytes`, and the size of the whole. Throws as read_file() does.
FileHead read_file_head(const std::filesystem::path& path, uint64_t max_bytes);

/// A file under a temporary name beside its place, synced and renamed by commit(); without commit() nothing remains.
/// Throws Error{Resource} when the disk is full, Error{Run} for other failures to write.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Syncs the file, renames it over the final name, syncs the directory.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// A directory with its parents; removing a file or a whole tree, if there is one. Both throw as AtomicFile does.
void make_directories(const std::filesystem::path& path);
void remove_tree(const std::filesystem::path& path);

/// In the names of what is not whole yet: `NAME.lathe-tmp-PID`.
inline constexpr const char* kTemporaryMark = ".lathe-tmp-";

/// Fills a directory under a temporary name, syncs its files and renames it to `path`; what is there gives way. Removes
/// the temporary directory, and leaves `path` as it was, when `fill` throws.
void publish_directory(const std::filesystem::path& path,
                       const std::function<void(const std::filesystem::path&)>& fill);

/// An exclusive lock on a file (flock): held for the life of the object, released by the kernel when the process dies.
/// Throws Error{Config} when another process holds it.
class FileLock {
 public:
  explicit FileLock(const std::filesystem::path& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace lathe
