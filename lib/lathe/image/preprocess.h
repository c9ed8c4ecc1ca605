#pragma once

#include <vector>

#include "lathe/image/resize.h"

namespace lathe::image {

/// How a picture becomes what a model sees.
struct Preprocess {
  int64_t channels = 3, height = 224, width = 224;  ///< of the model's input
  Filter filter = Filter::Bicubic;
  double crop_pct = 1;            ///< share of the resized picture that the centre crop keeps, in (0, 1]
  std::vector<double> mean, std;  ///< per channel, of samples in [0, 1]

  bool operator==(const Preprocess&) const = default;
};

/// The random changes of a training picture.
struct Augment {
  bool flip = false;  ///< mirrored with probability 1/2
  bool crop = false;  ///< instead of the centre, a random window: area 0.08 to 1, aspect 3/4 to 4/3
};

/// The picture in the model's channels: grey becomes colour. Throws Error{Data} naming `place` for colour where the
/// model has one channel.
Picture to_channels(Picture picture, int64_t channels, const std::string& place);

/// Without augmentation: the shorter side to size / crop_pct, the aspect kept, then the centre. The sizes and the
/// window are torchvision's Resize and CenterCrop.
Picture fit(const Picture& picture, const Preprocess& preprocess);

/// With augmentation, a function of `key` alone. The window is drawn as by torchvision's RandomResizedCrop.
Picture augmented(const Picture& picture, const Preprocess& preprocess, const Augment& augment, uint64_t key);

/// (sample / 255 - mean) / std, one plane per channel, to channels * height * width floats. Requires a picture of the
/// model's size and channels.
void normalise(const Picture& picture, const Preprocess& preprocess, float* out);

}  // namespace lathe::image
