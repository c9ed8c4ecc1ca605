#pragma once

#include "lathe/arch/decoder.h"
#include "lathe/cost/parameters.h"

namespace lathe::app::practice {

/// A published decoder, from the sizes in its config.json, counted as the planner counts it.
struct PublishedModel {
  arch::DecoderArch arch;
  cost::ParameterCount count;
};
PublishedModel mixtral_8x7b();
PublishedModel llama_2_7b();

}  // namespace lathe::app::practice
