#pragma once

#include <string>

namespace lathe {

/// The processor's name as the system gives it; empty where it gives none.
std::string processor_name();

/// Whether this process multiplies bfloat16 matrices faster than float32: by the processor's matrix units (AMX: the
/// instructions are there, the system keeps their registers, and permission to use them was granted), or by AVX512-BF16
/// on a processor of AMD, which has twice the rate of float32 (Intel's has half of it).
bool multiplies_bfloat16_fast();

/// Whether the processor has AVX-512 (F, BW, DQ and VL) and the system keeps its registers.
bool has_avx512();

/// Whether the processor says that Intel made it.
bool is_intel();

}  // namespace lathe
