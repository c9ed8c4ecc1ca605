#include "lathe/models/quantize.h"

#include <algorithm>

#include "lathe/arch/targets.h"

namespace lathe::models {
namespace {

bool is_skipped(const std::string& path, const std::vector<std::string>& skip) {
  // The path itself, then each module around it.
  for (size_t end = path.size(); end != std::string::npos && end > 0; end = path.rfind('.', end - 1)) {
    const std::string module = path.substr(0, end);
    if (std::any_of(skip.begin(), skip.end(),
                    [&](const std::string& name) { return arch::matches_module_name(module, name); }))
      return true;
  }
  return false;
}

}  // namespace

void quantize_slots(torch::nn::Module& model, nn::NF4LinearOptions options, const std::vector<std::string>& skip) {
  for (const nn::NamedSlot& named : nn::named_slots(model)) {
    if (is_skipped(named.path, skip)) continue;
    const nn::LinearBase& dense = **named.slot;
    named.slot->replace(
        nn::NF4Linear(dense.in_features(), dense.out_features(), dense.bias().defined(), options).ptr());
  }
}

}  // namespace lathe::models
