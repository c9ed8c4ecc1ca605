#include "lathe/image/preprocess.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "expect_error.h"
#include "golden.h"

namespace lathe::image {
namespace {

using testing::error_text;
using testing::golden;

Picture source() { return read_picture(golden("image/source.png")); }  // 37 high, 53 wide

Preprocess square(int64_t size, double crop_pct = 1) {
  return {3, size, size, Filter::Bicubic, crop_pct, {0.5, 0.5, 0.5}, {0.5, 0.5, 0.5}};
}

TEST(Fit, IsResizeAndCentreCropAsTorchvisionHasThem) {
  // Resize(int(16 / 0.875) = 18): 18 x int(18 * 53 / 37) = 25; CenterCrop: top 1, left round(4.5) = 4.
  EXPECT_EQ(fit(source(), square(16, 0.875)), crop(resize(source(), 18, 25, Filter::Bicubic), {1, 4, 16, 16}));
  Picture tall(53, 37, 3);
  EXPECT_EQ(fit(tall, square(16)).height, 16);
}

TEST(Fit, LeavesAPictureOfTheRightSizeAlone) {
  const Picture picture = resize(source(), 16, 16, Filter::Bicubic);
  EXPECT_EQ(fit(picture, square(16)), picture);
}

TEST(Fit, TakesExtremeShapes) {
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {1, 3'000'000}, {3'000'000, 1}}) {
    const Picture fitted = fit(Picture(height, width, 1), {1, 28, 28, Filter::Bicubic, 0.875, {0}, {1}});
    EXPECT_EQ(fitted, Picture(28, 28, 1));
  }
}

TEST(Augmented, IsAFunctionOfTheKey) {
  std::set<std::vector<uint8_t>> seen;
  for (uint64_t key = 0; key < 40; ++key) {
    const Picture picture = augmented(source(), square(16), {true, true}, key);
    EXPECT_EQ(picture, augmented(source(), square(16), {true, true}, key));
    EXPECT_EQ(picture.height * picture.width, 256);
    seen.insert(picture.bytes);
  }
  EXPECT_EQ(seen.size(), 40U);
}

TEST(Augmented, FlipsAboutHalf) {
  const Picture straight = fit(source(), square(16));
  int flipped = 0;
  for (uint64_t key = 0; key < 400; ++key) {
    Picture picture = augmented(source(), square(16), {.flip = true}, key);
    if (picture == straight) continue;
    flip(picture);
    ASSERT_EQ(picture, straight);
    ++flipped;
  }
  EXPECT_NEAR(flipped, 200, 50);  // five standard deviations of a binomial
}

TEST(Augmented, TakesExtremeShapes) {
  for (uint64_t key = 0; key < 20; ++key)
    EXPECT_EQ(augmented(Picture(1, 100'000, 3), square(16), {true, true}, key), Picture(16, 16, 3));
}

TEST(Normalise, WritesPlanes) {
  Picture picture(1, 2, 3);
  picture.bytes = {0, 51, 255, 255, 102, 0};
  std::vector<float> out(6);
  normalise(picture, {3, 1, 2, Filter::Bicubic, 1, {0.5, 0, 0}, {0.5, 1, 2}}, out.data());
  EXPECT_EQ(out, (std::vector<float>{-1, 1, 0.2F, 0.4F, 0.5F, 0}));
}

TEST(ToChannels, RefusesColourForOneChannel) {
  EXPECT_EQ(
      error_text(ErrorKind::Data, [] { to_channels(source(), 1, "f"); }),
      "f: expected a grey picture, for a model of one channel, got a picture in colour (convert it to grey, or use "
      "a model of three channels)");
  EXPECT_EQ(to_channels(Picture(2, 2, 1), 3, "f"), Picture(2, 2, 3));
}

}  // namespace
}  // namespace lathe::image
