#pragma once

#include <cstdint>

namespace lathe::app {

/// Throws Error{Config} unless --blocksize is one that four bits can have.
void check_blocksize(int64_t blocksize);

}  // namespace lathe::app
