#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "lathe/formats/model_directory.h"
#include "lathe/nn/nf4.h"

namespace lathe::models {

/// What quantize_directory() did.
struct QuantizedDirectory {
  int64_t num_weights = 0;  ///< quantised
  int64_t num_kept = 0;     ///< in four bits already, copied byte for byte
  uint64_t bytes_before = 0, bytes_after = 0;
};

/// Writes a model directory that transformers with bitsandbytes opens, and Lathe: the weights of the linear layers in
/// four bits, but for modules whose path equals an item of `skip` or ends with "." + item, and what is inside of them;
/// all other tensors as they are, in the same files; config.json with quantization_config; the tokenizer's files.
/// `out` must exist. One file's result and one weight are in memory at a time.
/// Throws Error{Data} for a family that is not known, for a weight that is not finite, and for a weight that is in four
/// bits already in another way.
QuantizedDirectory quantize_directory(const formats::ModelDirectory& model, const nn::NF4LinearOptions& options,
                                      const std::vector<std::string>& skip, const std::filesystem::path& out);

}  // namespace lathe::models
