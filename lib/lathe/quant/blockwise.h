#pragma once

#include <cstdint>

#include "lathe/quant/codes.h"
#include "lathe/quant/scales.h"

/// Blockwise four-bit quantisation of flat arrays, compiled for several instruction sets and chosen when first called:
/// the results are the same bits on all. Single-threaded: callers split blocks or elements. No pointer needs alignment
/// beyond its element's; nothing is touched past the last element.
namespace lathe::quant {

enum class Float { F32, BF16, F16 };

/// Quantises the blocks [first_block, last_block) of x [num_elements]; x, packed and absmax are those of the whole.
///     absmax = max |x|,   code = decide(x · (1 / absmax))
/// Source  bitsandbytes: the reciprocal is that of max(absmax, 1e-38), so a block of zeros gets the code of 0.
/// Returns the place of the first element that is not finite (its block and later ones are then not written), or -1.
int64_t quantize(QuantType type, Float dtype, const void* x, int64_t num_elements, int64_t blocksize,
                 int64_t first_block, int64_t last_block, uint8_t* packed, float* absmax);

/// A quantised array: a view.
struct Packed {
  const uint8_t* codes = nullptr;
  Scales scales;
  const float* book = nullptr;  ///< [16]
  int64_t blocksize = 64;
};

/// out[i] = code · absmax of element begin + i, rounded once to `dtype`, for elements [begin, end).
void dequantize(const Packed& packed, int64_t begin, int64_t end, Float dtype, void* out);
/// The same rounded to bfloat16 and kept in float32.
void dequantize_rounded(const Packed& packed, int64_t begin, int64_t end, float* out);
/// out[m · out_stride] = Σ_k x[m, k] Ŵ[begin + k] for the elements [begin, end), decoded nowhere but in registers;
/// false where the processor has too few. begin and end are multiples of 32; of each 32 values of x [num_x, end -
/// begin] the even ones come first, the odd ones after them. `rounded`: Ŵ is rounded to bfloat16.
bool dots_in_registers(const Packed& packed, int64_t begin, int64_t end, bool rounded, const float* x, int64_t num_x,
                       float* out, int64_t out_stride);

}  // namespace lathe::quant
