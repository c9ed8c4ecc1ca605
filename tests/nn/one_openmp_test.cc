#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

namespace lathe {
namespace {

TEST(Process, HasExactlyOneOpenMpLibrary) {
  at::set_num_threads(2);
  std::atomic<int> chunks{0};
  at::parallel_for(0, 2, 1, [&](int64_t, int64_t) { ++chunks; });
  EXPECT_EQ(chunks, 2) << "at::parallel_for is serial: this was compiled without -fopenmp";
  std::set<std::string> libraries;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const size_t path = line.find('/');
    if (path != std::string::npos && line.find("libgomp") != std::string::npos) libraries.insert(line.substr(path));
    EXPECT_EQ(line.find("libiomp"), std::string::npos) << line;
  }
  EXPECT_EQ(libraries.size(), 1u);
}

// LibTorch has exported symbols of std::filesystem that crashed programs which use another libstdc++.
TEST(Process, WalksADirectoryTree) {
  int entries = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(
           "/proc/self/net", std::filesystem::directory_options::skip_permission_denied)) {
    entries += entry.path().empty() ? 0 : 1;
  }
  EXPECT_GT(entries, 0);
}

}  // namespace
}  // namespace lathe
