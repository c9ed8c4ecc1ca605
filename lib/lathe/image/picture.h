#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lathe::image {

/// A picture of 8-bit samples, row by row, the channels of a pixel side by side.
struct Picture {
  int64_t height = 0, width = 0;
  int64_t channels = 0;  ///< 1: grey, 3: red, green, blue
  std::vector<uint8_t> bytes;

  Picture() = default;
  Picture(int64_t height, int64_t width, int64_t channels)
      : height(height), width(width), channels(channels), bytes(static_cast<size_t>(height * width * channels)) {}
  const uint8_t* row(int64_t y) const { return bytes.data() + y * width * channels; }
  uint8_t* row(int64_t y) { return bytes.data() + y * width * channels; }
  bool operator==(const Picture&) const = default;
};

/// More pixels are refused before memory is taken for them.
inline constexpr int64_t kMaxPixels = int64_t{1} << 26;
/// A longer file is refused unread.
inline constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;

/// The pixels of a PNG or a JPEG, told apart by their first bytes; the same as Pillow's `convert("RGB")`, or
/// `convert("L")` of a grey file. A palette becomes colours, transparency is dropped, of 16 bits the upper 8 stay, an
/// EXIF orientation is not applied. `file` is the name for messages.
/// Throws Error{Data} for anything else, for a damaged or cut file, for CMYK, for more than kMaxPixels, and for a size
/// that so few bytes cannot hold.
Picture decode(std::string_view bytes, const std::string& file);

/// decode() of a file. Throws Error{Data} also when it is missing or over kMaxFileBytes.
Picture read_picture(const std::string& file);

/// A PNG of the picture.
std::string encode_png(const Picture& picture);

/// Grey as three equal channels. Requires one or three channels.
Picture to_colour(const Picture& picture);

}  // namespace lathe::image
