#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>

#include "command_line.h"
#include "lathe/train/classifier.h"

/// What predict and logits share.
namespace lathe::app {

/// Samples per batch where nothing is trained.
constexpr size_t kInferenceBatchSize = 16;

/// Refuses texts for a model that sees images, and the other way: Error{Config}.
void require_inputs_for(const CommandLine& line, const train::Classifier& classifier);

/// The logits. Throws Error{Numeric} when one is not finite.
at::Tensor finite_logits(const CommandLine& line, at::Tensor logits);

}  // namespace lathe::app
