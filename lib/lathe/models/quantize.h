#pragma once

#include <string>
#include <vector>

#include "lathe/nn/nf4.h"

namespace lathe::models {

/// Puts an NF4Linear, still without a weight, into every slot of a skeleton, but for the modules whose path equals an
/// item of `skip` or ends with "." + item, and what is inside of them. load_weights() then quantises each weight as it
/// is read.
void quantize_slots(torch::nn::Module& model, nn::NF4LinearOptions options, const std::vector<std::string>& skip);

}  // namespace lathe::models
