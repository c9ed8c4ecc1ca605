#include "lathe/image/preprocess.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "lathe/base/error.h"
#include "lathe/base/random.h"

namespace lathe::image {
namespace {

// The middle, rounded half to even as Python rounds.
int64_t middle(int64_t size, int64_t window) { return std::lrint(static_cast<double>(size - window) / 2); }

Window centre_of(int64_t picture_height, int64_t picture_width, int64_t height, int64_t width) {
  return {middle(picture_height, height), middle(picture_width, width), height, width};
}

// Ten draws of an area and an aspect; when none fits, the largest centre whose aspect is in range.
Window random_window(const Picture& picture, uint64_t key) {
  constexpr double kSmallestArea = 0.08, kNarrowest = 3.0 / 4, kWidest = 4.0 / 3;
  const auto height = static_cast<double>(picture.height), width = static_cast<double>(picture.width);
  for (uint64_t draw = 0; draw < 10; ++draw) {
    const auto uniform = [&](uint64_t index) { return random_uniform(key, 4 * draw + index); };
    const double area = height * width * (kSmallestArea + (1 - kSmallestArea) * uniform(0));
    const double aspect = kNarrowest * std::pow(kWidest / kNarrowest, uniform(1));
    const auto w = std::lrint(std::sqrt(area * aspect)), h = std::lrint(std::sqrt(area / aspect));
    if (w < 1 || h < 1 || w > picture.width || h > picture.height) continue;
    return {static_cast<int64_t>(uniform(2) * static_cast<double>(picture.height - h + 1)),
            static_cast<int64_t>(uniform(3) * static_cast<double>(picture.width - w + 1)), h, w};
  }
  const double aspect = std::clamp(width / height, kNarrowest, kWidest);
  const int64_t h = std::clamp<int64_t>(std::lrint(width / aspect), 1, picture.height);
  const int64_t w = std::clamp<int64_t>(std::lrint(height * aspect), 1, picture.width);
  return centre_of(picture.height, picture.width, h, w);
}

}  // namespace

Picture to_channels(Picture picture, int64_t channels, const std::string& place) {
  if (channels == picture.channels) return picture;
  if (channels == 3) return to_colour(picture);
  throw data_error(place, Diagnostic::expected("a grey picture, for a model of one channel", "a picture in colour"),
                   "convert it to grey, or use a model of three channels");
}

Picture fit(const Picture& picture, const Preprocess& preprocess) {
  if (preprocess.crop_pct == 1 && picture.height == preprocess.height && picture.width == preprocess.width)
    return picture;
  const auto target = [&](int64_t size) {
    return std::max<int64_t>(size, std::lrint(std::floor(static_cast<double>(size) / preprocess.crop_pct)));
  };
  int64_t height = target(preprocess.height), width = target(preprocess.width);
  if (height * picture.width >= width * picture.height) {
    width = height * picture.width / picture.height;
  } else {
    height = width * picture.height / picture.width;
  }
  return resize(picture, height, width, preprocess.filter,
                centre_of(height, width, preprocess.height, preprocess.width));
}

Picture augmented(const Picture& picture, const Preprocess& preprocess, const Augment& augment, uint64_t key) {
  Picture out;
  if (augment.crop) {
    const Window window = random_window(picture, make_key(key, name_key("crop")));
    out = resize(crop(picture, window), preprocess.height, preprocess.width, preprocess.filter);
  } else {
    out = fit(picture, preprocess);
  }
  if (augment.flip && random_uniform(make_key(key, name_key("flip")), 0) < 0.5) flip(out);
  return out;
}

void normalise(const Picture& picture, const Preprocess& preprocess, float* out) {
  const int64_t pixels = picture.height * picture.width;
  for (int64_t c = 0; c < picture.channels; ++c) {
    const auto channel = static_cast<size_t>(c);
    std::array<float, 256> value{};
    for (size_t sample = 0; sample < value.size(); ++sample)
      value[sample] =
          static_cast<float>((static_cast<double>(sample) / 255 - preprocess.mean[channel]) / preprocess.std[channel]);
    for (int64_t i = 0; i < pixels; ++i)
      out[c * pixels + i] = value[picture.bytes[static_cast<size_t>(i * picture.channels + c)]];
  }
}

}  // namespace lathe::image
