#pragma once

#include <memory>

#include "lathe/train/task.h"

namespace lathe::train {

/// Text classification: opens and checks everything that `recipe` names, then builds the model.
/// Throws Error{Config}, Error{Data}.
std::unique_ptr<Task> open_classifier_task(const recipe::Recipe& recipe);

}  // namespace lathe::train
