#pragma once

#include <memory>

#include "lathe/arch/arch.h"
#include "lathe/nn/linear.h"
#include "lathe/nn/pass.h"

namespace lathe::models {

using at::Tensor;

/// A model that gives one row of logits per image. Its parameters are named as in timm.
class ImageClassifier : public nn::SlottedModule {
 public:
  using nn::SlottedModule::SlottedModule;
  /// pixels [N, channels, height, width] float32, normalised -> [N, num_labels].
  /// Throws c10::ValueError when the pixels have another shape than the model's.
  virtual Tensor forward(const Tensor& pixels, const nn::Pass& pass) = 0;
};

/// The skeleton of a family's classifier: modules and shapes, hollow parameters, nothing trainable.
std::shared_ptr<ImageClassifier> build_image_classifier(const arch::Arch& arch, int64_t num_labels);

}  // namespace lathe::models
