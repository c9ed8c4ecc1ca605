#pragma once

namespace lathe {

/// Whether this process may multiply bfloat16 matrices with the processor's matrix units (AMX): the instructions are
/// there, the system keeps their registers, and permission to use them was granted.
bool has_bfloat16_matrix_units();

}  // namespace lathe
