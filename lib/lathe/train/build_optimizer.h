#pragma once

#include <memory>

#include "lathe/optim/optimizer.h"
#include "lathe/optim/schedule.h"
#include "lathe/recipe/recipe.h"

namespace lathe::train {

/// The optimizer of a recipe over `parameters`. A parameter's learning rate and weight decay are those of the first of
/// optimizer.groups whose pattern matches its whole name, else optimizer.lr (times lora_plus_ratio for a lora_B) and
/// optimizer.weight_decay. Throws Error{Config} for a group that matches nothing.
std::unique_ptr<optim::Optimizer> build_optimizer(const recipe::Recipe& recipe, const optim::NamedTensors& parameters);

optim::Schedule build_schedule(const recipe::Optimizer& options, int64_t num_steps);

}  // namespace lathe::train
