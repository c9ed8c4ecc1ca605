#include "lathe/image/picture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "expect_error.h"
#include "formats/mutations.h"
#include "golden.h"
#include "lathe/base/files.h"
#include "lathe/base/random.h"

namespace lathe::image {
namespace {

using testing::error_text;
using testing::golden;
using ::testing::HasSubstr;
using testing::mutated;

Picture golden_picture(const std::string& name) { return read_picture(golden("image/" + name)); }
std::string golden_bytes(const std::string& name) { return read_file(golden("image/" + name), kMaxFileBytes); }
std::string refusal(const std::string& bytes) {
  return error_text(ErrorKind::Data, [&] { decode(bytes, "f"); });
}

// A PNG or JPEG whose header says another size.
std::string with_size(std::string bytes, size_t at, uint64_t first, uint64_t second, size_t width) {
  for (const uint64_t size : {first, second}) {
    for (size_t i = 0; i < width; ++i) bytes[at + i] = static_cast<char>(size >> (8 * (width - 1 - i)));
    at += width;
  }
  return bytes;
}

uint32_t crc_of(std::string_view bytes) {
  uint32_t crc = ~0U;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xEDB88320U : 0);
  }
  return ~crc;
}

std::string png_of_size(uint64_t width, uint64_t height) {
  std::string png = with_size(golden_bytes("source.png"), 16, width, height, 4);
  const uint32_t crc = crc_of(std::string_view(png).substr(12, 17));
  for (size_t i = 0; i < 4; ++i) png[29 + i] = static_cast<char>(crc >> (8 * (3 - i)));
  return png;
}

TEST(Decode, GivesWhatPillowGivesForEveryKindOfPng) {
  for (const char* kind : {"palette", "alpha", "grey_alpha", "bits"})
    EXPECT_EQ(to_colour(golden_picture(std::string(kind) + ".png")), golden_picture(std::string(kind) + ".rgb.png"))
        << kind;
  EXPECT_EQ(golden_picture("grey.png").channels, 1);
}

TEST(Decode, GivesWhatPillowGivesForJpegs) {
  EXPECT_EQ(golden_picture("photo.jpg"), golden_picture("photo.decoded.png"));
  EXPECT_EQ(golden_picture("grey.jpg"), golden_picture("grey.decoded.png"));
  EXPECT_EQ(golden_picture("grey.jpg").channels, 1);
}

TEST(Decode, ReadsWhatEncodePngWrote) {
  for (const char* name : {"source.png", "grey.png"}) {
    const Picture picture = golden_picture(name);
    EXPECT_EQ(decode(encode_png(picture), "f"), picture) << name;
  }
}

TEST(Decode, RefusesWhatIsNoPicture) {
  EXPECT_EQ(refusal(""), "f: is empty");
  EXPECT_EQ(refusal("GIF89a"), "f: is neither PNG nor JPEG (convert it to one of them)");
  EXPECT_THAT(refusal("\x89PNG\r\n\x1A\n"), HasSubstr("f: damaged PNG: the file ends too early"));
  EXPECT_THAT(refusal("\xFF\xD8\xFF\xE0"), HasSubstr("f: damaged JPEG: "));
}

TEST(Decode, RefusesEveryCut) {
  for (const char* name : {"source.png", "photo.jpg"}) {
    const std::string whole = golden_bytes(name);
    for (size_t size = 8; size + 16 < whole.size(); size += 7)
      EXPECT_THAT(refusal(whole.substr(0, size)), HasSubstr("damaged ")) << name << " cut to " << size;
  }
}

TEST(Decode, RefusesAbsurdSizesBeforeItTakesMemory) {
  EXPECT_THAT(refusal(png_of_size(60000, 60000)), HasSubstr("expected at most 67108864 pixels, got 60000 x 60000"));
  EXPECT_THAT(refusal(png_of_size(8000, 8000)), HasSubstr("claims 8000 x 8000 pixels in "));
  const std::string jpeg = golden_bytes("photo.jpg");
  const size_t frame = jpeg.find("\xFF\xC0") + 5;
  EXPECT_THAT(refusal(with_size(jpeg, frame, 65000, 65000, 2)), HasSubstr("expected at most 67108864 pixels"));
}

TEST(Decode, SurvivesMutations) {
  int accepted = 0, refused = 0;
  for (const char* name : {"source.png", "palette.png", "bits.png", "photo.jpg", "grey.jpg"}) {
    const std::string original = golden_bytes(name);
    for (uint64_t i = 0; i < 2000; ++i) {
      try {
        const Picture picture = decode(mutated(original, make_key(name_key(name), i)), name);
        EXPECT_LE(picture.height * picture.width, kMaxPixels);
        ++accepted;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::Data) << error.what();
        ++refused;
      }
    }
  }
  // A changed coefficient of a JPEG goes unnoticed; a PNG has checksums.
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused, 5000);
}

}  // namespace
}  // namespace lathe::image
