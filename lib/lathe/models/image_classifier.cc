#include "lathe/models/image_classifier.h"

#include <variant>

#include "lathe/models/mixer.h"

namespace lathe::models {

std::shared_ptr<ImageClassifier> build_image_classifier(const arch::Arch& arch, int64_t num_labels) {
  TORCH_CHECK_VALUE(arch::sees_images(arch), "build_image_classifier: expected the shape of an image model");
  auto model = std::make_shared<Mixer>(std::get<arch::MixerArch>(arch), num_labels);
  for (Tensor& parameter : model->parameters()) parameter.requires_grad_(false);
  return model;
}

}  // namespace lathe::models
