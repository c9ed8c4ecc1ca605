#include "lathe/optim/sgd.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_sgd.h>

#include <utility>

namespace lathe::optim {

Sgd::Sgd(std::vector<Trained> trained, SgdOptions options) : Optimizer(std::move(trained)), options_(options) {
  TORCH_CHECK_VALUE(!options.nesterov || options.momentum > 0, "Sgd: expected momentum > 0 with nesterov, got ",
                    options.momentum);
  if (options.momentum != 0) momentum_buffers_ = add_state("momentum_buffer");
}

void Sgd::step(double lr) {
  const at::NoGradGuard no_grad;
  for (const Group& group : groups()) {
    const auto buffers = options_.momentum != 0 ? group.select(momentum_buffers_) : std::vector<Tensor>();
    // A buffer of zeros makes the first step b = g, as torch.optim does.
    at::_fused_sgd_(group.parameters, group.grads, buffers, group.weight_decay, options_.momentum, lr * group.lr_factor,
                    /*dampening=*/0, options_.nesterov, /*maximize=*/false, /*is_first_step=*/false);
  }
}

}  // namespace lathe::optim
