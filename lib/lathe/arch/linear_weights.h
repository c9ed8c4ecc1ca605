#pragma once

#include <set>
#include <string>

#include "lathe/formats/model_directory.h"

namespace lathe::arch {

/// The names of the tensors of a model directory that are the weights of linear layers in transformers' model: what
/// four bits can hold. Reads more families than build into modules here: also llama, mistral, qwen2, qwen3, gemma.
/// Throws Error{Data} for other families.
std::set<std::string> linear_weights(const formats::ModelDirectory& model);

}  // namespace lathe::arch
