#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lathe::arch {

enum class Activation { Gelu, GeluTanh };

/// How the code that a family comes from draws a parameter.
struct Initial {
  enum class Kind {
    Constant,         ///< value
    Normal,           ///< N(0, value²)
    TruncatedNormal,  ///< N(0, value²) cut at two standard deviations
    Uniform,          ///< in [-value, value)
  } kind = Kind::Constant;
  double value = 0;
};

struct ParameterSpec {
  std::string name;
  std::vector<int64_t> shape;
  Initial initial = {};
};

struct LinearSpec {
  std::string path;
  int64_t in_features;
  int64_t out_features;
  int64_t num_experts = 1;  ///< of a tensor that holds the matrices of all experts
};

// Far above any published model, far below what overflows a product of sizes.
inline constexpr int64_t kMaxSize = 1 << 24;
inline constexpr int64_t kMaxLayers = 4096;

}  // namespace lathe::arch
