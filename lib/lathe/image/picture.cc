#include "lathe/image/picture.h"

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/image/codecs.h"

namespace lathe::image {

void check_size(int64_t height, int64_t width, size_t file_bytes, const std::string& file) {
  // DEFLATE packs at most 1032 to 1, JPEG at most 512 pixels into a byte; the constant spares tiny files.
  constexpr int64_t kMostPixelsPerByte = 8 * 1032;
  const std::string size = std::to_string(width) + " x " + std::to_string(height);
  if (height < 1 || width < 1) throw data_error(file, Diagnostic::expected("a picture with pixels", size));
  if (width > kMaxPixels / height) {
    throw data_error(file, Diagnostic::expected("at most " + std::to_string(kMaxPixels) + " pixels", size),
                     "make it smaller");
  }
  if (height * width / kMostPixelsPerByte > static_cast<int64_t>(file_bytes)) {
    throw data_error(file, "claims " + size + " pixels in " + std::to_string(file_bytes) + " bytes",
                     "the file is damaged or cut");
  }
}

Picture decode(std::string_view bytes, const std::string& file) {
  if (bytes.starts_with("\x89PNG\r\n\x1A\n")) return decode_png(bytes, file);
  if (bytes.starts_with("\xFF\xD8\xFF")) return decode_jpeg(bytes, file);
  if (bytes.empty()) throw data_error(file, "is empty");
  throw data_error(file, "is neither PNG nor JPEG", "convert it to one of them");
}

Picture read_picture(const std::string& file) { return decode(read_file(file, kMaxFileBytes), file); }

Picture to_colour(const Picture& picture) {
  if (picture.channels == 3) return picture;
  Picture colour(picture.height, picture.width, 3);
  for (size_t i = 0; i < picture.bytes.size(); ++i) {
    for (size_t c = 0; c < 3; ++c) colour.bytes[3 * i + c] = picture.bytes[i];
  }
  return colour;
}

}  // namespace lathe::image
