#pragma once

#include <cstdint>
#include <vector>

namespace lathe::data {

/// How the samples of a batch are mixed: sample i becomes weight · i + (1 - weight) · partner[i], its loss likewise.
/// Source: Zhang et al. 2018, "mixup: Beyond empirical risk minimization" (arXiv:1710.09412).
struct Mixup {
  double weight = 1;              ///< drawn from Beta(alpha, alpha), one for the batch
  std::vector<int64_t> partners;  ///< a permutation of the batch
};

/// A function of its arguments alone. Requires alpha > 0.
Mixup draw_mixup(double alpha, int64_t batch_size, uint64_t key);

}  // namespace lathe::data
