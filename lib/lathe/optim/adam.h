#pragma once

#include "lathe/optim/optimizer.h"

namespace lathe::optim {

struct AdamOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
};

/// One fused pass over parameter, gradient and both moments:
///     m = β₁ m + (1 - β₁) g;   v = β₂ v + (1 - β₂) g²;   p -= lr · m̂ / (√v̂ + eps)
/// with g = gradient + weight_decay · p (an L2 penalty).
/// Source: Kingma and Ba 2015 (arXiv:1412.6980); equals torch.optim.Adam.
///
/// State   NAME.exp_avg, NAME.exp_avg_sq (the parameter's shape and dtype), NAME.step (float32 scalar)
class Adam : public Optimizer {
 public:
  explicit Adam(std::vector<Trained> trained, AdamOptions options = {});
  void step(double lr) override;

 private:
  virtual void update(const Group& group, double lr);

 protected:
  AdamOptions options_;
  std::vector<Tensor> exp_avgs_, exp_avg_sqs_, steps_;
};

/// Adam with decoupled weight decay: g is the gradient alone, and p -= lr · weight_decay · p comes first.
/// Source: Loshchilov and Hutter 2019 (arXiv:1711.05101); equals torch.optim.AdamW.
class AdamW : public Adam {
 public:
  using Adam::Adam;

 private:
  void update(const Group& group, double lr) override;
};

}  // namespace lathe::optim
