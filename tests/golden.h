#pragma once

#include <string>

namespace lathe::testing {

/// The path of a file in tests/golden.
inline std::string golden(const std::string& name) { return std::string(LATHE_GOLDEN) + "/" + name; }

}  // namespace lathe::testing
