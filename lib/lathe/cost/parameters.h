#pragma once

#include <string>
#include <utility>
#include <vector>

#include "lathe/arch/arch.h"
#include "lathe/cost/ledger.h"

namespace lathe::cost {

/// How many weights a model has, from its shape alone.
struct ParameterCount {
  Amount total = 0;
  Amount active = 0;  ///< what one token meets: without the experts that its router does not choose
  std::vector<std::pair<std::string, Amount>> kinds{};  ///< embeddings, attention, mlp, ...; those that the model has
};

/// `num_labels` is a classifier's; a decoder has its vocabulary.
ParameterCount count_parameters(const arch::Arch& arch, int64_t num_labels = 2);

/// The number of elements of a tensor.
Amount num_elements(const std::vector<int64_t>& shape);

}  // namespace lathe::cost
