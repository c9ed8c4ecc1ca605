#pragma once

#include <ATen/Context.h>
#include <hwy/targets.h>

#include <cstdlib>

namespace lathe::bench {

/// With LATHE_BENCH_AVX2 in the environment: from now on what a processor without AVX-512 would run.
inline void hold_to_avx2_if_asked() {
  if (std::getenv("LATHE_BENCH_AVX2") == nullptr) return;
  hwy::DisableTargets(HWY_AVX2 - 1);  // Highway counts from the best one down
  at::globalContext().setUserEnabledMkldnn(false);
}

}  // namespace lathe::bench
