#include "lathe/optim/adam.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>

#include <utility>

namespace lathe::optim {

Adam::Adam(std::vector<Trained> trained, AdamOptions options)
    : Optimizer(std::move(trained)),
      options_(options),
      exp_avgs_(add_state("exp_avg")),
      exp_avg_sqs_(add_state("exp_avg_sq")),
      steps_(add_state("step", /*scalar=*/true)) {}

void Adam::step(double lr) {
  const at::NoGradGuard no_grad;
  for (const Group& group : groups()) {
    at::_foreach_add_(group.select(steps_), 1);
    update(group, lr * group.lr_factor);
  }
}

void Adam::update(const Group& group, double lr) {
  at::_fused_adam_(group.parameters, group.grads, group.select(exp_avgs_), group.select(exp_avg_sqs_), {},
                   group.select(steps_), lr, options_.beta1, options_.beta2, group.weight_decay, options_.eps,
                   /*amsgrad=*/false, /*maximize=*/false);
}

void AdamW::update(const Group& group, double lr) {
  at::_fused_adamw_(group.parameters, group.grads, group.select(exp_avgs_), group.select(exp_avg_sqs_), {},
                    group.select(steps_), lr, options_.beta1, options_.beta2, group.weight_decay, options_.eps,
                    /*amsgrad=*/false, /*maximize=*/false);
}

}  // namespace lathe::optim
