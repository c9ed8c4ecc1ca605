#pragma once

namespace lathe {

/// Lathe's version, as "0.1.0".
const char* version();

}  // namespace lathe
