#include <png.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstring>

#include "lathe/base/error.h"
#include "lathe/base/text.h"
#include "lathe/image/codecs.h"

namespace lathe::image {
namespace {

// libpng leaves a function by longjmp. What it jumps out of, read_header() and read_rows(), holds nothing that has a
// destructor: only this plain struct and pointers.
struct Reader {
  png_structp png;
  png_infop info;
  const char* data;
  size_t size, at;
  std::array<char, 96> problem;
  png_uint_32 width, height;
  int colour_type;
};

void on_error(png_structp png, png_const_charp message) {
  auto* reader = static_cast<Reader*>(png_get_error_ptr(png));
  std::strncpy(reader->problem.data(), message, reader->problem.size() - 1);
  png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep out, size_t count) {
  auto* reader = static_cast<Reader*>(png_get_io_ptr(png));
  if (count > reader->size - reader->at) png_error(png, "the file ends too early");
  std::memcpy(out, reader->data + reader->at, count);
  reader->at += count;
}

bool read_header(Reader& reader) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  png_set_read_fn(reader.png, &reader, read_bytes);
  // Text, profiles and other chunks that no pixel depends on are passed over: they may be bombs.
  png_set_keep_unknown_chunks(reader.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  png_read_info(reader.png, reader.info);
  reader.width = png_get_image_width(reader.png, reader.info);
  reader.height = png_get_image_height(reader.png, reader.info);
  reader.colour_type = png_get_color_type(reader.png, reader.info);
  return true;
}

bool read_rows(Reader& reader, png_bytepp rows, size_t row_bytes) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  png_set_strip_16(reader.png);
  if (reader.colour_type == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(reader.png);
  if (reader.colour_type == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(reader.png);
  png_set_strip_alpha(reader.png);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  if (png_get_rowbytes(reader.png, reader.info) != row_bytes) png_error(reader.png, "rows of an unknown kind");
  png_read_image(reader.png, rows);
  png_read_end(reader.png, nullptr);
  return true;
}

// Owns libpng's structures.
class PngFile {
 public:
  explicit PngFile(std::string_view bytes) {
    reader_.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader_, on_error, on_warning);
    if (reader_.png != nullptr) reader_.info = png_create_info_struct(reader_.png);
    if (reader_.info == nullptr) {
      png_destroy_read_struct(&reader_.png, nullptr, nullptr);
      throw Error(ErrorKind::Resource, Diagnostic{"", 0, 0, "", "the PNG decoder does not start", ""});
    }
    reader_.data = bytes.data();
    reader_.size = bytes.size();
  }
  ~PngFile() { png_destroy_read_struct(&reader_.png, &reader_.info, nullptr); }
  PngFile(const PngFile&) = delete;
  PngFile& operator=(const PngFile&) = delete;

  Reader& reader() { return reader_; }

 private:
  Reader reader_{};
};

}  // namespace

Picture decode_png(std::string_view bytes, const std::string& file) {
  PngFile png(bytes);
  Reader& reader = png.reader();
  const auto damaged = [&] { return data_error(file, "damaged PNG: " + printable(reader.problem.data())); };
  if (!read_header(reader)) throw damaged();
  check_size(reader.height, reader.width, bytes.size(), file);
  const bool grey = (reader.colour_type & PNG_COLOR_MASK_COLOR) == 0;
  Picture picture(reader.height, reader.width, grey ? 1 : 3);
  std::vector<png_bytep> rows;
  for (int64_t y = 0; y < picture.height; ++y) rows.push_back(picture.row(y));
  if (!read_rows(reader, rows.data(), static_cast<size_t>(picture.width * picture.channels))) throw damaged();
  return picture;
}

std::string encode_png(const Picture& picture) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(picture.width);
  image.height = static_cast<png_uint_32>(picture.height);
  image.format = picture.channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  std::string png(PNG_IMAGE_PNG_SIZE_MAX(image), '\0');
  png_alloc_size_t size = png.size();
  if (png_image_write_to_memory(&image, png.data(), &size, 0, picture.bytes.data(), 0, nullptr) == 0)
    throw Error(ErrorKind::Internal, Diagnostic{"", 0, 0, "", std::string("cannot write a PNG: ") + image.message, ""});
  png.resize(size);
  return png;
}

}  // namespace lathe::image
