#include <turbojpeg.h>

#include <memory>

#include "lathe/base/error.h"
#include "lathe/base/text.h"
#include "lathe/image/codecs.h"

namespace lathe::image {
namespace {

// What decoders let pass: stray bytes between markers, which lose no pixel.
bool is_harmless(const std::string& warning) { return warning.find("extraneous bytes") != std::string::npos; }

}  // namespace

Picture decode_jpeg(std::string_view bytes, const std::string& file) {
  const std::unique_ptr<void, int (*)(tjhandle)> decoder(tjInitDecompress(), tjDestroy);
  if (!decoder) throw Error(ErrorKind::Resource, Diagnostic{file, 0, 0, "", "the JPEG decoder does not start", ""});
  const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
  const auto damaged = [&] {
    const std::string said = tjGetErrorStr2(decoder.get());
    return data_error(file, "damaged JPEG: " + printable(said));
  };
  int width = 0, height = 0, subsampling = 0, colours = 0;
  if (tjDecompressHeader3(decoder.get(), data, bytes.size(), &width, &height, &subsampling, &colours) != 0)
    throw damaged();
  if (height < 1 || width < 1) throw data_error(file, "damaged JPEG: the file ends before its size");
  check_size(height, width, bytes.size(), file);
  if (colours == TJCS_CMYK || colours == TJCS_YCCK)
    throw data_error(file, Diagnostic::expected("a grey or RGB picture", "CMYK"), "convert it to RGB");
  const bool grey = colours == TJCS_GRAY;
  Picture picture(height, width, grey ? 1 : 3);
  // Fancy upsampling and the accurate DCT are what Pillow decodes with; LIMITSCANS stops bombs of progressive scans.
  const int done = tjDecompress2(decoder.get(), data, bytes.size(), picture.bytes.data(), width, /*pitch=*/0, height,
                                 grey ? TJPF_GRAY : TJPF_RGB, TJFLAG_ACCURATEDCT | TJFLAG_LIMITSCANS);
  if (done != 0 && !(tjGetErrorCode(decoder.get()) == TJERR_WARNING && is_harmless(tjGetErrorStr2(decoder.get()))))
    throw damaged();
  return picture;
}

}  // namespace lathe::image
