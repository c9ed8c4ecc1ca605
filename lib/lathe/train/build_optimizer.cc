#include "lathe/train/build_optimizer.h"

#include <utility>

#include "lathe/arch/regex.h"
#include "lathe/base/error.h"
#include "lathe/base/text.h"
#include "lathe/optim/adam.h"
#include "lathe/optim/sgd.h"

namespace lathe::train {
namespace {

std::vector<optim::Trained> apply_groups(const recipe::Recipe& recipe, std::vector<optim::Trained> trained) {
  const auto& options = recipe.optimizer;
  for (optim::Trained& item : trained) {
    if (item.name.ends_with(".lora_B.weight")) item.lr_factor = options.lora_plus_ratio;
  }
  std::vector<bool> grouped(trained.size());
  for (size_t index = 0; index < options.groups.size(); ++index) {
    const recipe::ParameterGroup& group = options.groups[index];
    const Diagnostic place = recipe.at("optimizer.groups[" + std::to_string(index) + "].pattern");
    const arch::Regex pattern(group.pattern, place);
    bool matched = false;
    for (size_t i = 0; i < trained.size(); ++i) {
      if (!pattern.matches_whole(trained[i].name)) continue;
      matched = true;
      if (grouped[i]) continue;
      grouped[i] = true;
      if (group.lr) trained[i].lr_factor = *group.lr / options.lr;
      if (group.weight_decay && trained[i].parameter.dim() >= 2) trained[i].weight_decay = *group.weight_decay;
    }
    if (matched) continue;
    Diagnostic mistake = place;
    mistake.problem = quote(group.pattern) + " matches no trained parameter";
    mistake.hint = trained.empty() ? "" : "a name is, for example, " + trained.front().name;
    throw Error(ErrorKind::Config, mistake);
  }
  return trained;
}

}  // namespace

std::unique_ptr<optim::Optimizer> build_optimizer(const recipe::Recipe& recipe, const optim::NamedTensors& parameters) {
  const auto& options = recipe.optimizer;
  auto trained = apply_groups(recipe, optim::with_weight_decay(parameters, options.weight_decay));
  const optim::AdamOptions adam{options.betas[0], options.betas[1], options.eps};
  switch (options.type) {
    case recipe::OptimizerType::AdamW:
      return std::make_unique<optim::AdamW>(std::move(trained), adam);
    case recipe::OptimizerType::Adam:
      return std::make_unique<optim::Adam>(std::move(trained), adam);
    case recipe::OptimizerType::Sgd:
      break;
  }
  return std::make_unique<optim::Sgd>(std::move(trained), optim::SgdOptions{options.momentum, options.nesterov});
}

optim::Schedule build_schedule(const recipe::Optimizer& options, int64_t num_steps) {
  using From = recipe::ScheduleType;
  using To = optim::ScheduleType;
  optim::Schedule schedule{To::Constant, options.num_warmup_steps, num_steps, options.min_lr_ratio,
                           options.num_decay_steps.value_or(0)};
  switch (options.schedule) {
    case From::Constant:
      break;
    case From::Linear:
      schedule.type = To::Linear;
      break;
    case From::Cosine:
      schedule.type = To::Cosine;
      break;
    case From::InverseSqrt:
      schedule.type = To::InverseSqrt;
      break;
    case From::Wsd:
      schedule.type = To::Wsd;
      break;
  }
  return schedule;
}

}  // namespace lathe::train
