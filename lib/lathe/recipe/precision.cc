#include "lathe/recipe/precision.h"

#include "lathe/base/processor.h"

namespace lathe::recipe {
namespace {

StorageType stored_type(const arch::CheckpointMatch& match) {
  const formats::TensorInfo* largest = nullptr;
  for (const auto& item : match.items) {
    if (item.tensor == nullptr || item.four_bit != nullptr) continue;
    if (largest == nullptr || item.tensor->info.num_bytes() > largest->num_bytes()) largest = &item.tensor->info;
  }
  const bool half =
      largest != nullptr && (largest->dtype == formats::Dtype::BF16 || largest->dtype == formats::Dtype::F16);
  return half ? StorageType::BFloat16 : StorageType::Float32;
}

}  // namespace

Precision resolve_precision(StorageType dtype, StorageType compute, const arch::CheckpointMatch& match) {
  Precision precision{dtype == StorageType::Auto ? stored_type(match) : dtype, compute};
  if (compute == StorageType::Auto) {
    const bool fast = precision.storage == StorageType::BFloat16 && multiplies_bfloat16_fast();
    precision.compute = fast ? StorageType::BFloat16 : StorageType::Float32;
  }
  return precision;
}

}  // namespace lathe::recipe
