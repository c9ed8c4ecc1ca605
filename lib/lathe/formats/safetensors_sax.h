#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "lathe/formats/safetensors.h"

namespace lathe::formats {

/// The JSON of a safetensors header, read event by event straight into `header`: names, dtypes, shapes and offsets as
/// they stand, unchecked against each other. Memory is bounded by what is really listed, not by what JSON could nest.
/// Throws Error{Data} for everything that is not exactly the format's structure.
void read_header_json(std::string_view json, const std::string& file, SafetensorsHeader& header);

std::optional<Dtype> find_dtype(std::string_view name);

}  // namespace lathe::formats
