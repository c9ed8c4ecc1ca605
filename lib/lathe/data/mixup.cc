#include "lathe/data/mixup.h"

#include <cmath>
#include <numbers>

#include "lathe/base/random.h"

namespace lathe::data {
namespace {

// The logarithm of a draw from Gamma(shape, 1): for a small shape the draw itself may round to zero.
// Source: Marsaglia, Tsang 2000, "A simple method for generating gamma variables"; a shape below 1 by section 6.
double log_gamma_draw(double shape, uint64_t key) {
  const double boost = shape < 1 ? std::log(1 - random_uniform(key, 0)) / shape : 0;
  const double d = (shape < 1 ? shape + 1 : shape) - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (uint64_t draw = 1;; draw += 3) {
    const double normal = std::sqrt(-2 * std::log(1 - random_uniform(key, draw))) *
                          std::cos(2 * std::numbers::pi * random_uniform(key, draw + 1));
    const double root = 1 + c * normal, v = root * root * root;
    if (v <= 0) continue;
    const double bound = normal * normal / 2 + d - d * v + d * std::log(v);
    if (std::log(1 - random_uniform(key, draw + 2)) < bound) return std::log(d * v) + boost;
  }
}

}  // namespace

Mixup draw_mixup(double alpha, int64_t batch_size, uint64_t key) {
  const double a = log_gamma_draw(alpha, make_key(key, name_key("mixup"), 0));
  const double b = log_gamma_draw(alpha, make_key(key, name_key("mixup"), 1));
  return {1 / (1 + std::exp(b - a)), random_permutation(batch_size, make_key(key, name_key("mixup"), 2))};
}

}  // namespace lathe::data
