#pragma once

#include <string>
#include <vector>

#include "lathe/arch/arch.h"
#include "lathe/formats/model_directory.h"

namespace lathe::arch {

/// How a checkpoint's tensors fill a classifier's parameters.
struct CheckpointMatch {
  struct Item {
    ParameterSpec parameter;
    const formats::TensorLocation* tensor;  ///< in the ModelDirectory that was matched; null: new, to be initialised
  };
  std::vector<Item> items;  ///< every parameter, in order
  bool has_head = false;    ///< whether the checkpoint brings the classification head
};

/// Matches by name, with or without the family's prefix ("bert."). Known inert tensors (position_ids, ...) and the heads of
/// pre-training (cls.*) are left aside; every other tensor must be used and every parameter but the head's found, with its shape.
/// Throws Error{Data} with one diagnostic per tensor that does not fit.
CheckpointMatch match_checkpoint(const formats::ModelDirectory& model, const Arch& arch, int64_t num_labels);

}  // namespace lathe::arch
