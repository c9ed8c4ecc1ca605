#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace lathe {

/// Randomness from counters: a value is a function of (seed, stream, index), so nothing has to be saved to resume.
/// Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (the finaliser of SplitMix64).
constexpr uint64_t mix_bits(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

/// A key from a chain of words, for example (seed, step, layer, purpose).
template <typename... Words>
constexpr uint64_t make_key(Words... words) {
  uint64_t key = 0;
  ((key = mix_bits(key ^ mix_bits(static_cast<uint64_t>(words)))), ...);
  return key;
}

/// A key from a name (FNV-1a, mixed), for purposes and parameters.
constexpr uint64_t name_key(std::string_view name) {
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  return mix_bits(hash);
}

/// Bits number `index` of the stream `key`.
constexpr uint64_t random_bits(uint64_t key, uint64_t index) { return mix_bits(key ^ mix_bits(index)); }

/// Uniform in [0, 1), 53 bits.
constexpr double random_uniform(uint64_t key, uint64_t index) {
  return static_cast<double>(random_bits(key, index) >> 11) * 0x1.0p-53;
}

/// A uniformly random order of 0 .. size - 1 (Fisher-Yates), a function of the key alone.
inline std::vector<int64_t> random_permutation(int64_t size, uint64_t key) {
  std::vector<int64_t> order(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) order[static_cast<size_t>(i)] = i;
  for (int64_t i = size - 1; i > 0; --i) {
    const auto j = static_cast<int64_t>(random_uniform(key, static_cast<uint64_t>(i)) * static_cast<double>(i + 1));
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(j)]);
  }
  return order;
}

}  // namespace lathe
