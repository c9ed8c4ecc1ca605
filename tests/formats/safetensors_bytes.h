#pragma once

#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "lathe/formats/safetensors.h"

namespace lathe::testing {

/// A safetensors file of any header text and `data_bytes` zeros.
inline std::string safetensors_bytes(const std::string& json, size_t data_bytes) {
  const uint64_t length = json.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + json + std::string(data_bytes, '\0');
}

/// A valid file of zeros.
inline std::string safetensors_bytes(const std::vector<std::pair<std::string, std::vector<int64_t>>>& shapes,
                                     formats::Dtype dtype = formats::Dtype::F32) {
  std::vector<formats::TensorInfo> infos;
  for (const auto& [name, shape] : shapes) infos.push_back({name, dtype, shape, 0, 0});
  const std::string head = formats::make_safetensors_header(infos, {{"format", "pt"}});
  return head + std::string(infos.empty() ? 0 : infos.back().end, '\0');
}

}  // namespace lathe::testing
