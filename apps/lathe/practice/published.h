#pragma once

#include "lathe/arch/decoder.h"

namespace lathe::app::practice {

/// Published decoders, from the sizes in their config.json.
arch::DecoderArch mixtral_8x7b();
arch::DecoderArch llama_2_7b();

}  // namespace lathe::app::practice
