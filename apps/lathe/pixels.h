#pragma once

#include <ATen/core/Tensor.h>

#include "command_line.h"
#include "lathe/image/preprocess.h"
#include "lathe/train/classifier.h"

namespace lathe::app {

/// The images that --image or --pixels names, as `classifier` sees them.
class PixelSource {
 public:
  /// Throws Error{Data} for pixel_values of another type or shape.
  PixelSource(const CommandLine& line, const train::Classifier& classifier);

  int64_t size() const;
  /// The images from `first`, at most kInferenceBatchSize. Throws Error{Data} for a file that is no picture.
  at::Tensor batch(int64_t first) const;

 private:
  const std::vector<std::string>& files_;
  image::Preprocess preprocess_;
  at::Tensor pixels_;  // of --pixels
};

}  // namespace lathe::app
