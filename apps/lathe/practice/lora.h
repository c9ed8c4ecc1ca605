#pragma once

#include "lathe/nn/lora.h"
#include "practice/measure.h"

namespace lathe::app::practice {

/// W from counters, N(0, 1 / in_features), no bias.
nn::Linear make_linear(int64_t in_features, int64_t out_features, const char* name);

/// Wraps `base` (which freezes it), with A from counters in the library's own distribution: U(±1 / √in_features). B is
/// zero, or drawn, as after some training.
nn::LoRALinear make_lora(const std::shared_ptr<nn::LinearBase>& base, nn::LoRALinearOptions options, const char* name,
                         bool start_at_zero = true);

}  // namespace lathe::app::practice
