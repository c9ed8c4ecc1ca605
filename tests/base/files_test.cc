#include "lathe/base/files.h"

#include <sys/wait.h>
#include <unistd.h>

#include "expect_error.h"
#include "temporary_directory.h"

namespace lathe {
namespace {

using testing::error_text;
using ::testing::HasSubstr;
using testing::TemporaryDirectory;

TEST(MappedFile, WritesNeverReachTheFile) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("a", "abc");
  const MappedFile file(path);
  file.bytes()[0] = std::byte{'X'};
  EXPECT_EQ(read_file(path, 10), "abc");
}

TEST(MappedFile, RefusesWhatIsNotAFile) {
  const TemporaryDirectory directory;
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { MappedFile file(directory / "none"); }), HasSubstr("no such file"));
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { MappedFile file(directory.path()); }),
              HasSubstr("expected a file, got a directory"));
  EXPECT_TRUE(MappedFile(directory.write("empty", "")).bytes().empty());
}

TEST(MappedFile, MapsAFileLargerThanMemory) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("sparse", "abc");
  std::filesystem::resize_file(path, uint64_t{1} << 40);
  const MappedFile file(path);
  EXPECT_EQ(file.bytes().size(), uint64_t{1} << 40);
  EXPECT_EQ(file.bytes()[2], std::byte{'c'});
}

TEST(ReadFileHead, ReadsOnlyTheStart) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("sparse", "abc");
  std::filesystem::resize_file(path, uint64_t{1} << 40);
  const FileHead head = read_file_head(path, 2);
  EXPECT_EQ(head.bytes, "ab");
  EXPECT_EQ(head.file_size, uint64_t{1} << 40);
  EXPECT_EQ(read_file_head(directory.write("short", "a"), 2).bytes, "a");
}

TEST(ReadFile, RefusesMoreThanTheLimit) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("a", "abcdef");
  EXPECT_EQ(read_file(path, 6), "abcdef");
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { read_file(path, 5); }),
              HasSubstr("expected at most 5 bytes, got 6 bytes"));
}

TEST(AtomicFile, LeavesNothingWithoutCommit) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("a", "old");
  {
    AtomicFile file(path);
    file.write("new");
  }
  EXPECT_EQ(read_file(path, 10), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
  write_file_atomically(path, "new");
  EXPECT_EQ(read_file(path, 10), "new");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
}

TEST(PublishDirectory, AppearsWholeOrNotAtAll) {
  const TemporaryDirectory directory;
  EXPECT_THROW(publish_directory(directory / "d", [](const auto&) { throw std::runtime_error("no"); }),
               std::runtime_error);
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
  publish_directory(directory / "d", [](const auto& path) { write_file_atomically(path / "f", "x"); });
  EXPECT_EQ(read_file(directory / "d/f", 10), "x");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
}

TEST(FileLock, IsHeldByOneProcessAndFreedByItsDeath) {
  const TemporaryDirectory directory;
  const auto path = directory / "lock";
  const auto taken_by_child = [&] {
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        const FileLock lock(path);
        ::_exit(0);
      } catch (const Error& error) {
        ::_exit(error.exit_code());
      }
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WEXITSTATUS(status);
  };
  EXPECT_EQ(taken_by_child(), 0);
  const FileLock lock(path);
  EXPECT_EQ(taken_by_child(), 2);
}

}  // namespace
}  // namespace lathe
