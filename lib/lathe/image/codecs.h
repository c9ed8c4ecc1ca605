#pragma once

#include <string>
#include <string_view>

#include "lathe/image/picture.h"

namespace lathe::image {

/// The two formats behind decode(), which looks at the first bytes. Both throw Error{Data} with `file`.
Picture decode_png(std::string_view bytes, const std::string& file);
Picture decode_jpeg(std::string_view bytes, const std::string& file);

/// Throws Error{Data} for a size that is over the limit or that a file of so few bytes cannot hold.
void check_size(int64_t height, int64_t width, size_t file_bytes, const std::string& file);

}  // namespace lathe::image
