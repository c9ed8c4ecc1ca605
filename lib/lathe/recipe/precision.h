#pragma once

#include "lathe/arch/checkpoint.h"
#include "lathe/recipe/values.h"

namespace lathe::recipe {

/// The types that model.dtype and model.compute mean on this machine; never Auto.
struct Precision {
  StorageType storage = StorageType::Float32;
  StorageType compute = StorageType::Float32;
};

/// Storage auto: as the largest tensor is stored (float16 becomes bfloat16). Compute auto: bfloat16 for weights stored
/// so, where the processor multiplies it fast, float32 elsewhere.
Precision resolve_precision(StorageType dtype, StorageType compute, const arch::CheckpointMatch& match);

}  // namespace lathe::recipe
