#include "lathe/image/resize.h"

#include <gtest/gtest.h>

#include "golden.h"

namespace lathe::image {
namespace {

using testing::golden;

Picture resized_golden(const std::string& name) { return read_picture(golden("image/" + name)); }

TEST(Resize, EqualsPillowBitForBit) {
  const Picture source = resized_golden("source.png");
  constexpr Window kSizes[] = {{0, 0, 24, 20}, {0, 0, 7, 5}, {0, 0, 90, 31},
                               {0, 0, 37, 90}, {0, 0, 1, 1}, {0, 0, 53, 41}};
  for (const Window& size : kSizes) {
    const std::string name = std::to_string(size.height) + "x" + std::to_string(size.width) + ".png";
    EXPECT_EQ(resize(source, size.height, size.width, Filter::Bilinear), resized_golden("bilinear-" + name)) << name;
    EXPECT_EQ(resize(source, size.height, size.width, Filter::Bicubic), resized_golden("bicubic-" + name)) << name;
  }
}

TEST(Resize, GivesAWindowOfTheWholeResult) {
  const Picture source = resized_golden("source.png");
  for (const Window& window : {Window{0, 0, 24, 20}, Window{3, 5, 1, 1}, Window{11, 4, 13, 16}}) {
    EXPECT_EQ(resize(source, 24, 20, Filter::Bicubic, window), crop(resize(source, 24, 20, Filter::Bicubic), window));
    EXPECT_EQ(resize(source, 37, 53, Filter::Bicubic, window), crop(source, window));
  }
}

TEST(Resize, OfAWindowCostsTheWindow) {
  Picture strip(4'000'000, 1, 1);  // its whole at this size would take 12 GiB
  strip.bytes.assign(strip.bytes.size(), 77);
  const Picture window = resize(strip, strip.height * 56, 56, Filter::Bicubic, {100'000'000, 0, 56, 56});
  EXPECT_EQ(window.bytes, std::vector<uint8_t>(56 * 56, 77));
}

TEST(Flip, MirrorsEachRow) {
  Picture picture(1, 3, 3);
  picture.bytes = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  flip(picture);
  EXPECT_EQ(picture.bytes, (std::vector<uint8_t>{7, 8, 9, 4, 5, 6, 1, 2, 3}));
}

}  // namespace
}  // namespace lathe::image
