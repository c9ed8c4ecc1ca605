#include "lathe/formats/idx.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <memory>
#include <span>

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/text.h"

namespace lathe::formats {
namespace {

constexpr int64_t kMaxBytes = int64_t{16} << 30;
constexpr int64_t kMostPacked = 1032;  // DEFLATE's largest ratio

// A gzip file, or a plain one, as a stream of bytes.
class Stream {
 public:
  explicit Stream(const std::string& file) : file_(file), handle_(::gzopen(file.c_str(), "rb"), ::gzclose) {
    if (!handle_) throw data_error(file, "cannot be read");
    ::gzbuffer(handle_.get(), 1 << 17);
  }

  /// Fills as much of `out` as there is.
  size_t read(std::span<uint8_t> out) {
    size_t done = 0;
    while (done < out.size()) {
      const auto piece = static_cast<unsigned>(std::min<size_t>(out.size() - done, 1U << 30));
      const int got = ::gzread(handle_.get(), out.data() + done, piece);
      if (got < 0) throw damaged();
      if (got == 0) break;
      done += static_cast<size_t>(got);
    }
    return done;
  }
  /// Throws when what was read so far ended in the middle of a gzip stream.
  void check_whole() {
    int code = Z_OK;
    ::gzerror(handle_.get(), &code);
    if (code == Z_BUF_ERROR || (code != Z_OK && code != Z_STREAM_END)) throw damaged();
  }

 private:
  Error damaged() {
    int code = Z_OK;
    const std::string said = ::gzerror(handle_.get(), &code);
    const size_t text = said.find(": ");  // zlib puts the path before it
    return data_error(file_, "damaged gzip: " + printable(text == std::string::npos ? said : said.substr(text + 2)));
  }

  const std::string& file_;
  std::unique_ptr<gzFile_s, int (*)(gzFile)> handle_;
};

int64_t big_endian(std::span<const uint8_t> bytes) {
  int64_t value = 0;
  for (const uint8_t byte : bytes) value = value << 8 | byte;
  return value;
}

std::vector<int64_t> read_shape(Stream& stream, const std::string& file, size_t num_dimensions) {
  std::vector<uint8_t> header(4 + 4 * num_dimensions);
  const size_t got = stream.read(header);
  const std::string magic = "the magic number 0x0000080" + std::to_string(num_dimensions);
  if (got < 4) throw data_error(file, got == 0 ? "is empty" : Diagnostic::expected("an IDX file", "a shorter one"));
  constexpr std::array<uint8_t, 3> kUnsignedBytes = {0, 0, 8};
  if (!std::equal(kUnsignedBytes.begin(), kUnsignedBytes.end(), header.begin()) || header[3] != num_dimensions)
    throw data_error(file, Diagnostic::expected("an IDX file of unsigned bytes, " + magic, "other bytes"));
  if (got < header.size()) throw data_error(file, "ends in its header");
  std::vector<int64_t> shape;
  for (size_t i = 0; i < num_dimensions; ++i) shape.push_back(big_endian(std::span(header).subspan(4 + 4 * i, 4)));
  return shape;
}

int64_t checked_size(const std::vector<int64_t>& shape, const std::string& file, uint64_t file_size) {
  int64_t size = 1;
  std::string text;
  for (const int64_t dimension : shape) {
    text += (text.empty() ? "" : " x ") + std::to_string(dimension);
    if (dimension == 0) throw data_error(file, "holds no elements");
    size = dimension > kMaxBytes / size ? kMaxBytes + 1 : size * dimension;
  }
  if (size > kMaxBytes) throw data_error(file, Diagnostic::expected("at most 16 GiB", text + " bytes"));
  if (size / kMostPacked > static_cast<int64_t>(file_size))
    throw data_error(file, "claims " + text + " bytes, in a file of " + std::to_string(file_size), "it is cut");
  return size;
}

}  // namespace

IdxFile read_idx(const std::string& file, size_t num_dimensions) {
  const uint64_t file_size = read_file_head(file, 1).file_size;
  Stream stream(file);
  IdxFile idx;
  idx.shape = read_shape(stream, file, num_dimensions);
  idx.bytes.resize(static_cast<size_t>(checked_size(idx.shape, file, file_size)));
  const size_t got = stream.read(idx.bytes);
  if (got < idx.bytes.size()) {
    stream.check_whole();
    throw data_error(file, Diagnostic::expected(std::to_string(idx.bytes.size()) + " elements", std::to_string(got)),
                     "the file is cut");
  }
  std::array<uint8_t, 1> more{};  // also makes zlib compare the checksum
  if (stream.read(more) != 0) throw data_error(file, "is longer than its header says");
  stream.check_whole();
  return idx;
}

std::string idx_labels_path(const std::string& images_path) {
  constexpr std::string_view kImages = "images-idx3", kLabels = "labels-idx1";
  std::string path = images_path;
  const size_t at = path.rfind(kImages);
  if (at == std::string::npos || path.find('/', at) != std::string::npos) {
    throw data_error(images_path, "expected a file name with \"images-idx3\" in it",
                     "the labels are looked for where it says labels-idx1");
  }
  return path.replace(at, kImages.size(), kLabels);
}

}  // namespace lathe::formats
