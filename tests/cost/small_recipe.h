#pragma once

#include <string>
#include <vector>

#include "lathe/recipe/recipe.h"

namespace lathe::cost {

/// LoRA on an encoder of six layers with random weights: no file is read.
inline constexpr const char* kSmallRecipe = R"(
model: {task: classification, init: random, max_length: 32, arch: {model_type: bert, vocab_size: 100, hidden_size: 64, num_hidden_layers: 6, num_attention_heads: 2, intermediate_size: 128}}
adapter: {type: lora, rank: 4, alpha: 8, target_modules: all-linear}
data: {train: train.jsonl}
optimizer: {lr: 0.001}
training: {max_steps: 2, batch_size: 12}
output: {dir: unused}
)";

inline recipe::Recipe small_recipe(const std::vector<std::string>& overrides = {}) {
  return recipe::parse(kSmallRecipe, "recipe.yaml", "/base", overrides);
}

}  // namespace lathe::cost
