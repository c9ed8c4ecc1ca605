#pragma once

#include "lathe/optim/optimizer.h"

namespace lathe::optim {

struct SgdOptions {
  double momentum = 0;
  bool nesterov = false;  ///< needs momentum > 0
};

/// Stochastic gradient descent in one fused pass, with g = gradient + weight_decay · p:
///     b = momentum · b + g;   p -= lr · b,   or with nesterov   p -= lr (g + momentum · b)
/// Source: Sutskever et al. 2013; equals torch.optim.SGD.
///
/// State   NAME.momentum_buffer (the parameter's shape and dtype); none without momentum
/// Throws  c10::ValueError  on construction for nesterov without momentum
class Sgd : public Optimizer {
 public:
  explicit Sgd(std::vector<Trained> trained, SgdOptions options = {});
  void step(double lr) override;

 private:
  SgdOptions options_;
  std::vector<Tensor> momentum_buffers_;
};

}  // namespace lathe::optim
