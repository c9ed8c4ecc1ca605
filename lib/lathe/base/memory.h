#pragma once

#include <cstdint>

namespace lathe {

/// What this process may still allocate: the least of the system's available memory, what the limits of its control
/// group leave, and what RLIMIT_AS leaves. INT64_MAX where nothing is known.
int64_t available_memory_bytes();

/// What is resident of this process now; 0 where the system does not say.
int64_t resident_memory_bytes();
/// The most that was resident so far.
int64_t peak_resident_memory_bytes();

}  // namespace lathe
