#pragma once

#include <memory>
#include <vector>

#include "lathe/models/image_classifier.h"
#include "lathe/nn/mixer.h"
#include "lathe/nn/modules.h"

namespace lathe::models {

/// `stem.proj`: each patch of an image as one vector.
///
/// State   weight [hidden_size, channels, patch_size, patch_size], bias [hidden_size]; hollow until loaded
/// Shape   pixels [N, channels, height, width] -> [N, patches, hidden_size], patches row by row
class PatchProjection : public torch::nn::Module {
 public:
  explicit PatchProjection(const arch::MixerArch& arch);
  Tensor forward(const Tensor& pixels) const;

  Tensor weight, bias;
};

/// MLP-Mixer with a linear head on the mean over patches.
///
/// State   stem.proj.*, blocks.N.*, norm.*, head.weight [num_labels, hidden_size], head.bias [num_labels]
class Mixer : public ImageClassifier {
 public:
  Mixer(const arch::MixerArch& arch, int64_t num_labels);
  Tensor forward(const Tensor& pixels, const nn::Pass& pass) override;

 private:
  arch::MixerArch arch_;
  std::shared_ptr<PatchProjection> stem_;
  std::vector<nn::MixerBlock> blocks_;
  nn::LayerNorm norm_{nullptr};
  nn::LinearSlot head_;
};

}  // namespace lathe::models
