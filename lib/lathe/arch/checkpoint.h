#pragma once

#include <string>
#include <vector>

#include "lathe/arch/arch.h"
#include "lathe/formats/model_directory.h"

namespace lathe::arch {

/// Whether weights may be stored in this type: F32, F16, BF16, F64.
bool is_float(formats::Dtype dtype);

/// How a checkpoint's tensors fill a classifier's parameters.
struct CheckpointMatch {
  struct Item {
    ParameterSpec parameter;
    const formats::TensorLocation* tensor;  ///< in the ModelDirectory that was matched; null: new, to be initialised
    const formats::FourBitWeight* four_bit = nullptr;  ///< when the tensor holds the codes of a weight in four bits
  };
  std::vector<Item> items;  ///< every parameter, in order
  bool has_head = false;    ///< whether the checkpoint brings the classification head
};

/// Whether the checkpoint has a weight in four bits.
bool has_four_bit(const CheckpointMatch& match);

/// A match with no checkpoint: every parameter is new.
CheckpointMatch match_nothing(const Arch& arch, int64_t num_labels);

/// Matches by name, with or without the family's prefix ("bert."), LayerNorm's gamma and beta of old files included.
/// Known inert tensors (position_ids, ...) and the heads of pre-training (cls.*) are left aside; every other tensor
/// must be used, and every parameter found with its shape in a floating dtype; the weights of linear layers may be in
/// four bits. Only the head may be absent, as a whole;
/// an image model's head for another number of labels counts as absent.
/// Throws Error{Data} with one diagnostic per tensor that does not fit, at most 40.
CheckpointMatch match_checkpoint(const formats::ModelDirectory& model, const Arch& arch, int64_t num_labels);

}  // namespace lathe::arch
