#pragma once

#include <ATen/core/TensorBody.h>

#include <functional>
#include <utility>
#include <vector>

namespace lathe::app::practice {

using at::Tensor;

/// What training a linear layer with a low-rank update must give: formulas in float64, without autograd, modules or
/// optimizers of the library.
///     y = x W' + scaling (x A') B'
///     dW = g' x,  dB = scaling g' (x A'),  dA = scaling (g B)' x,  g = dL/dy
///     Adam: m = 0.9 m + 0.1 d, v = 0.999 v + 0.001 d^2, p -= lr (m / (1 - 0.9^t)) / (sqrt(v / (1 - 0.999^t)) + 1e-8)
struct ReferenceLayer {
  struct Moments {
    Tensor mean, square;
  };

  Tensor w;               ///< [out, in]
  Tensor a = {}, b = {};  ///< [rank, in], [out, rank]; undefined: no update
  double scaling = 1;
  bool trains_base = false;  ///< else W is frozen
  bool rounds_base = false;  ///< the products see W rounded to bfloat16

  Tensor forward(const Tensor& x) const;
  /// One step of Adam down the gradients from `g`, which stay in `gradients`: of A, B, W as far as they train.
  void step(const Tensor& x, const Tensor& g, double lr);

  std::vector<Tensor> gradients = {};
  std::vector<Moments> moments = {};
  int64_t num_steps = 0;
};

/// A loss of the outputs and its gradient.
using OutputLoss = std::function<std::pair<double, Tensor>(const Tensor& y)>;
OutputLoss mean_square_to(const Tensor& target);
OutputLoss mean_cross_entropy_of(const Tensor& labels);

/// What a training in float32 may be off in a mean square, as a share, after some steps: each rounds outputs near 1 to
/// 24 bits, and a residual r that is off by d changes r^2 by 2 d r.
double training_rounding(int64_t num_steps, double mean_square);

/// The loss before each step.
std::vector<double> train_reference(ReferenceLayer& layer, const Tensor& x, const OutputLoss& loss, double lr,
                                    int64_t num_steps);

}  // namespace lathe::app::practice
