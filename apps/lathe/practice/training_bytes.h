#pragma once

#include <string>

#include "lathe/cost/amount.h"

namespace lathe::app::practice {

/// What training a whole model keeps from step to step: weights, gradients, Adam's moments.
struct TrainingBytes {
  cost::Amount parameters = 0;
  cost::Amount planned = 0;  ///< by the planner
  /// In LibTorch's allocator in the middle of a window of train::Stepper. Single numbers aside: for each tensor the
  /// optimizer counts steps, and the skeleton had a NaN in its place.
  cost::Amount counted = 0;
};
/// Of a small Mixer, `dtype` as a recipe has it.
TrainingBytes training_bytes(const std::string& dtype);

}  // namespace lathe::app::practice
