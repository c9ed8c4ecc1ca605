#include "lathe/nn/counter_tensors.h"

#include <ATen/ops/empty.h>

#include <cmath>
#include <numbers>

#include "lathe/base/random.h"

namespace lathe::nn {

Tensor counter_uniform(at::IntArrayRef shape, uint64_t key) {
  Tensor values = at::empty(shape, at::kDouble);
  auto* data = values.data_ptr<double>();
  for (int64_t i = 0; i < values.numel(); ++i) data[i] = random_uniform(key, static_cast<uint64_t>(i));
  return values;
}

Tensor counter_normal(at::IntArrayRef shape, uint64_t key) {
  Tensor values = at::empty(shape, at::kDouble);
  auto* data = values.data_ptr<double>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    const auto index = 2 * static_cast<uint64_t>(i);
    const double u = 1 - random_uniform(key, index), v = random_uniform(key, index + 1);
    data[i] = std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
  }
  return values;
}

}  // namespace lathe::nn
