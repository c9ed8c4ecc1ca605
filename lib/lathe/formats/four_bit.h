#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lathe/base/json.h"
#include "lathe/formats/safetensors.h"

namespace lathe::formats {

/// What is said of a weight [rows, columns] that bitsandbytes keeps in four bits.
struct FourBitState {
  std::string quant_type = "nf4";  ///< "nf4", "fp4"
  int64_t blocksize = 64;          ///< 32, 64, ..., 4096
  Dtype dtype = Dtype::F32;        ///< of the weight before: F32, BF16, F16
  std::vector<int64_t> shape;
  bool nested = false;  ///< the scales are quantised too, by blocks of 256
  float nested_offset = 0;

  bool operator==(const FourBitState&) const = default;
  int64_t num_elements() const { return shape[0] * shape[1]; }
};

/// Such a weight in files: the tensors under its own name P and under P.absmax, P.quant_map, P.nested_absmax,
/// P.nested_quant_map and P.quant_state.bitsandbytes__TYPE.
/// Source  bitsandbytes 0.50.2, QuantState.as_dict(packed=True) and from_dict
struct FourBitWeight {
  FourBitState state;
  TensorLocation weight, absmax, quant_map, quant_state;
  std::optional<TensorLocation> nested_absmax, nested_quant_map;

  uint64_t num_bytes() const;
  std::vector<const TensorLocation*> parts() const;
};

/// Blocks are of 32, 64, 128, ..., 4096 elements.
bool is_four_bit_blocksize(int64_t blocksize);

/// The four-bit weights among `tensors`, in their order. The data of the quant_state tensors is read.
/// Throws Error{Data}, for all weights at once: a missing part, a part of another type or size than the others say, an
/// unknown part, quant_type, dtype or key, a block size that is not allowed, text that is no JSON.
std::vector<FourBitWeight> find_four_bit_weights(const std::vector<TensorLocation>& tensors);

/// The name of the tensor that holds quant_state_text(), and its text: the bytes of bitsandbytes.
std::string quant_state_name(const std::string& weight, const FourBitState& state);
std::string quant_state_text(const FourBitState& state);

/// config.json's quantization_config of a directory with such weights, as transformers writes it. `skip` names the
/// modules that are not in four bits, by suffixes.
Json quantization_config(const FourBitState& state, const std::vector<std::string>& skip);

}  // namespace lathe::formats
