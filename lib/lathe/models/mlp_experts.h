#pragma once

#include "lathe/arch/arch.h"
#include "lathe/nn/moe.h"

namespace lathe::models {

/// The skeleton of the experts that stand for an MLP: GELU experts with biases, hollow.
nn::MoELayer build_mlp_experts(const arch::MlpExperts& experts, int64_t in_features, int64_t hidden_features,
                               arch::Activation activation);

}  // namespace lathe::models
