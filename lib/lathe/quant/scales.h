#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace lathe::quant {

/// The 256 values of bitsandbytes' signed dynamic map, ascending: what double quantisation writes. A reader uses the
/// map of its file.
const std::array<float, 256>& dynamic_map();

constexpr int64_t kNestedBlocksize = 256;

/// The scales of a tensor's blocks, in float32 or quantised again (double quantisation): a view.
///     scale(b) = absmax[b],   or   map[codes[b]] · nested_absmax[b / 256] + offset with two roundings.
struct Scales {
  const float* absmax = nullptr;   ///< [num_blocks], or null when nested
  const uint8_t* codes = nullptr;  ///< [num_blocks]
  const float* nested_absmax = nullptr;
  const float* map = nullptr;  ///< [256]
  float offset = 0;
  int64_t nested_blocksize = kNestedBlocksize;
};

/// out[i] = the scale of block first + i.
void read_scales(const Scales& scales, int64_t first, int64_t count, float* out);

struct NestedScales {
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
  float offset = 0;
};

/// Quantises scales by blocks of 256 after taking their mean away; each goes to the nearest value of dynamic_map(), a
/// tie to the lower.
NestedScales nest_scales(std::span<const float> absmax);

}  // namespace lathe::quant
