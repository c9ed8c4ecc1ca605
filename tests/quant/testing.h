#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// What the tests of quant share: a run on each instruction set, memory that ends at a page nobody may touch, the
// specification's random numbers.

namespace lathe::quant {

template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(static_cast<size_t>(count)) {
    const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    body_ = (count_ * sizeof(T) + page - 1) / page * page + page;
    size_ = body_ + page;
    void* base = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::runtime_error("mmap failed");
    base_ = static_cast<char*>(base);
    if (::mprotect(base_ + body_, page, PROT_NONE) != 0) throw std::runtime_error("mprotect failed");
  }
  explicit Guarded(const std::vector<T>& values) : Guarded(static_cast<int64_t>(values.size())) {
    for (size_t i = 0; i < count_; ++i) data()[i] = values[i];
  }
  ~Guarded() { ::munmap(base_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  T* data() const { return reinterpret_cast<T*>(base_ + body_ - count_ * sizeof(T)); }
  std::vector<T> values() const { return {data(), data() + count_}; }

 private:
  size_t count_, body_ = 0, size_ = 0;
  char* base_ = nullptr;
};

inline std::vector<float> lcg(uint32_t seed, int64_t count) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    values.push_back(static_cast<float>(static_cast<int32_t>(seed >> 8) - (1 << 23)) / 8388608.0f);
  }
  return values;
}

inline void choose_target(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

inline std::vector<int64_t> supported_targets() {
  std::vector<int64_t> targets;
  for (int64_t left = hwy::SupportedTargets(); left != 0; left &= left - 1) targets.push_back(left & -left);
  return targets;
}

class TargetTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { choose_target(GetParam()); }
  void TearDown() override { choose_target(0); }
};

}  // namespace lathe::quant
