#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "lathe/base/random.h"
#include "lathe/nn/kernels.h"

// What the tests of the kernels share: a run on each instruction set, and the mask of dropout, one place at a time.

namespace lathe::nn::kernels {

constexpr int64_t kBorder = int64_t{1} << 32;  // where the 32-bit count of the hash starts again

inline std::vector<float> factors(int64_t first, int64_t n, Dropout d) {
  std::vector<float> values(static_cast<size_t>(n), 1);
  dropout(values.data(), values.data(), first, n, d);
  return values;
}

// The factor of one place, one at a time.
inline float factor_of(uint64_t place, Dropout d) {
  const uint64_t high = place >> 32, key = mix_bits(d.key ^ (high == 0 ? 0 : mix_bits(high)));
  uint32_t x = static_cast<uint32_t>(place) * 0x9E3779B9u + static_cast<uint32_t>(key);
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) + static_cast<uint32_t>(key >> 32);
  x *= 0x846CA68Bu;
  x ^= x >> 16;
  const bool kept = static_cast<double>(x ^ 0x80000000u) >= std::floor(static_cast<double>(d.p) * 0x1p32);
  return kept ? 1 / (1 - d.p) : 0.0f;
}

inline void choose(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

class KernelsTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { choose(GetParam()); }
  void TearDown() override { force_portable(false); }
};

inline std::vector<int64_t> compiled_targets() {
  std::vector<int64_t> targets;
  const int64_t usual = hwy::SupportedTargets();
  for (int64_t left = usual; left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    choose(target);
    if (chosen_target() == hwy::TargetName(target)) targets.push_back(target);
  }
  choose(usual);
  return targets;
}

}  // namespace lathe::nn::kernels
