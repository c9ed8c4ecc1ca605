#include "lathe/data/image_loader.h"

#include "expect_error.h"
#include "lathe/data/mixup.h"
#include "temporary_directory.h"

namespace lathe::data {
namespace {

using testing::error_text;
using ::testing::HasSubstr;

class ImageLoaderTest : public ::testing::Test {
 protected:
  ImageLoaderTest() {
    for (int i = 0; i < 12; ++i) {
      image::Picture picture(9 + i, 14, 3);
      for (size_t byte = 0; byte < picture.bytes.size(); ++byte)
        picture.bytes[byte] = static_cast<uint8_t>(byte * static_cast<size_t>(37 + i));
      folder.write("f/" + std::string(i % 2 == 0 ? "even" : "odd") + "/" + std::to_string(i) + ".png",
                   image::encode_png(picture));
    }
    dataset = ImageDataset::open({(folder / "f").string()}, {});
  }
  static std::vector<int64_t> samples(int64_t batch) { return {batch, (batch * 5 + 3) % 12, (batch * 7 + 1) % 12}; }

  testing::TemporaryDirectory folder;
  ImageDataset dataset;
  image::Preprocess preprocess{3, 8, 6, image::Filter::Bicubic, 0.9, {0.5, 0.5, 0.5}, {1, 1, 1}};
  image::Augment augment{.flip = true, .crop = true};
};

TEST_F(ImageLoaderTest, BatchesDependOnNeitherThreadsNorAnnouncements) {
  ImageLoader plain(dataset, preprocess, augment, 0);
  for (const int64_t workers : {1, 3}) {
    ImageLoader ahead(dataset, preprocess, augment, workers);
    for (int64_t batch = 0; batch < 12; ++batch) {
      // Announced in another order than taken, and every third not at all.
      if (batch % 3 == 0) ahead.announce(samples(batch + 1), static_cast<uint64_t>(batch + 1));
      if (batch % 3 == 1) ahead.announce(samples(batch), static_cast<uint64_t>(batch + 100));
      EXPECT_EQ(ahead.take(samples(batch), static_cast<uint64_t>(batch)),
                plain.take(samples(batch), static_cast<uint64_t>(batch)));
    }
  }
}

TEST_F(ImageLoaderTest, KeyAndPlaceInTheBatchDecideTheAugmentation) {
  ImageLoader loader(dataset, preprocess, augment, 0);
  const auto first = loader.take({4, 4, 4, 4}, 1), second = loader.take({4, 4, 4, 4}, 2);
  EXPECT_NE(first, second);
  EXPECT_NE(first[0], first[1]);
  EXPECT_EQ(first[0].height, 8);
  EXPECT_EQ(first[0].width, 6);
}

TEST_F(ImageLoaderTest, APictureThatVanishedIsNamedWhereItIsTaken) {
  std::filesystem::remove(folder / "f/even/0.png");
  ImageLoader loader(dataset, preprocess, augment, 2);
  loader.announce({0, 1}, 7);
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { loader.take({0, 1}, 7); }), HasSubstr("even/0.png"));
  EXPECT_EQ(loader.take({2, 3}, 8).size(), 2u);
}

TEST_F(ImageLoaderTest, WhatWasAnnouncedNeedNotBeTaken) {
  ImageLoader loader(dataset, preprocess, augment, 2);
  for (int64_t batch = 0; batch < 12; ++batch) loader.announce(samples(batch), 0);
}

TEST(Mixup, WeightsHaveTheMomentsOfTheBetaDistribution) {
  constexpr int kDraws = 20000;
  for (const double alpha : {0.2, 1.0, 4.0}) {
    double mean = 0, square = 0;
    for (int i = 0; i < kDraws; ++i) {
      const double weight = draw_mixup(alpha, 1, static_cast<uint64_t>(i)).weight;
      ASSERT_GE(weight, 0);
      ASSERT_LE(weight, 1);
      mean += weight / kDraws;
      square += (weight - 0.5) * (weight - 0.5) / kDraws;
    }
    // Five standard errors: the variance is 1 / (4 (2 alpha + 1)), that of a square in [0, 1/4] at most 1/64.
    const double variance = 1 / (4 * (2 * alpha + 1));
    EXPECT_NEAR(mean, 0.5, 5 * std::sqrt(variance / kDraws)) << alpha;
    EXPECT_NEAR(square, variance, 5 / 8.0 / std::sqrt(kDraws)) << alpha;
  }
}

TEST(Mixup, IsAFunctionOfTheKey) {
  const Mixup a = draw_mixup(0.2, 9, 5), b = draw_mixup(0.2, 9, 5), other = draw_mixup(0.2, 9, 6);
  EXPECT_EQ(a.weight, b.weight);
  EXPECT_EQ(a.partners, b.partners);
  EXPECT_NE(a.weight, other.weight);
  EXPECT_NE(a.partners, other.partners);
  std::vector<int64_t> sorted = a.partners;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_THAT(sorted, ::testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8));
}

}  // namespace
}  // namespace lathe::data
