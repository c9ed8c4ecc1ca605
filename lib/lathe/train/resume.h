#pragma once

#include <string>

#include "lathe/recipe/recipe.h"
#include "lathe/train/run_directory.h"
#include "lathe/train/run_state.h"

namespace lathe::train {

/// `recipe` with the micro-batches that the run in its output.dir began with: another split would give other bits.
recipe::Recipe with_batches_of_run(const recipe::Recipe& recipe);

/// Writes recipe.yaml, unless the directory holds the same recipe.
void write_recipe(RunDirectory& directory, const recipe::Recipe& recipe);

/// Refuses a recipe that differs from the run's in what must not change: Error{Config}, every key.
void require_recipe_of_run(const RunDirectory& directory, const recipe::Recipe& recipe);

/// Refuses a checkpoint that was made with other data or another base model: Error{Data}.
void require_same_inputs(const RunState& checkpoint, const RunState& now, const std::string& place);

}  // namespace lathe::train
