#include "pixels.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "inference.h"
#include "lathe/base/error.h"
#include "lathe/data/image_classification.h"
#include "lathe/io/tensors.h"

namespace lathe::app {
namespace {

at::Tensor read_pixels(const std::string& path, const image::Preprocess& preprocess) {
  const io::TensorFile file(path);
  const formats::TensorInfo* info = file.find("pixel_values");
  if (info == nullptr) throw data_error(path, "has no tensor pixel_values");
  const std::vector<int64_t> image = {preprocess.channels, preprocess.height, preprocess.width};
  const bool fits = info->dtype == formats::Dtype::F32 && info->shape.size() == 4 && info->shape[0] >= 1 &&
                    std::equal(image.begin(), image.end(), info->shape.begin() + 1);
  if (!fits) {
    throw data_error(path + ": pixel_values", "expected float32 [N >= 1, " + std::to_string(image[0]) + ", " +
                                                  std::to_string(image[1]) + ", " + std::to_string(image[2]) +
                                                  "], as the model sees");
  }
  return file.tensor("pixel_values");
}

}  // namespace

PixelSource::PixelSource(const CommandLine& line, const train::Classifier& classifier)
    : files_(line.images), preprocess_(data::preprocess_of(classifier.arch, *classifier.image)) {
  if (!line.pixels.empty()) pixels_ = read_pixels(line.pixels, preprocess_);
}

int64_t PixelSource::size() const { return pixels_.defined() ? pixels_.size(0) : static_cast<int64_t>(files_.size()); }

at::Tensor PixelSource::batch(int64_t first) const {
  const int64_t last = std::min(first + static_cast<int64_t>(kInferenceBatchSize), size());
  if (pixels_.defined()) return pixels_.slice(0, first, last);
  std::vector<image::Picture> pictures;
  for (int64_t i = first; i < last; ++i) {
    const std::string& file = files_[static_cast<size_t>(i)];
    pictures.push_back(
        image::fit(image::to_channels(image::read_picture(file), preprocess_.channels, file), preprocess_));
  }
  return train::make_pixels(pictures, preprocess_);
}

}  // namespace lathe::app
