#pragma once

#include <string>

#include "lathe/base/json.h"

namespace lathe::cost {

/// Bytes, operations or weights: whole numbers, exact up to 2^53, right to sixteen digits beyond, and without an upper
/// bound that any product of sizes meets. They become text and integers here alone, so that nothing overflows.
using Amount = double;

inline constexpr Amount kFloatBytes = 4, kIndexBytes = 8;

/// "1.5 GiB"; from 1024 YiB on in powers of ten: "1.2e+31 B".
std::string bytes_text(Amount bytes);
/// Four digits and a prefix: "6.738 G"; beyond a thousand P in powers of ten: "5.9e+18".
std::string count_text(Amount count);
/// An integer as long as it is exact, a float beyond.
Json whole(Amount amount);

}  // namespace lathe::cost
