#include "lathe/models/quantize.h"

#include "lathe/arch/targets.h"

namespace lathe::models {
void quantize_slots(torch::nn::Module& model, nn::NF4LinearOptions options, const std::vector<std::string>& skip) {
  for (const nn::NamedSlot& named : nn::named_slots(model)) {
    if (arch::is_within_any(named.path, skip)) continue;
    const nn::LinearBase& dense = **named.slot;
    named.slot->replace(
        nn::NF4Linear(dense.in_features(), dense.out_features(), dense.bias().defined(), options).ptr());
  }
}

}  // namespace lathe::models
