#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lathe/adapters/lora.h"
#include "lathe/arch/checkpoint.h"
#include "lathe/data/text_classification.h"
#include "lathe/image/picture.h"
#include "lathe/image/preprocess.h"
#include "lathe/models/image_classifier.h"
#include "lathe/models/text_classifier.h"
#include "lathe/recipe/resolve.h"

namespace lathe::train {

using at::Tensor;

/// A classifier of texts or images with its weights, and what is known of it.
struct Classifier {
  std::shared_ptr<nn::SlottedModule> model;  ///< a models::TextClassifier or models::ImageClassifier, as `arch` says
  arch::Arch arch;
  std::string model_path;                         ///< the base model's directory; empty: none
  Json config;                                    ///< what the saved model's config.json starts from
  std::optional<formats::AdapterConfig> adapter;  ///< none: no adapter
  std::vector<std::string> saved_modules;         ///< paths of the modules trained whole beside the adapters
  std::vector<std::string> labels;
  nn::Precision precision;                ///< of the base's matrices
  std::optional<arch::ImageInput> image;  ///< of an image classifier

  /// The model as what it is.
  models::TextClassifier& texts() const { return dynamic_cast<models::TextClassifier&>(*model); }
  models::ImageClassifier& images() const { return dynamic_cast<models::ImageClassifier&>(*model); }
};

/// Beside an adapter of an image classifier: what the config.json of a model says of the pixels.
inline constexpr const char* kPreprocessingFile = "preprocessing.json";

/// The skeleton of a classifier: modules and shapes, hollow parameters, nothing trainable.
std::shared_ptr<nn::SlottedModule> build_skeleton(const arch::Arch& arch, int64_t num_labels);

/// What prepare_model() decided.
struct Prepared {
  nn::Precision precision;                 ///< of the base's matrices
  std::vector<std::string> saved_modules;  ///< paths of the modules trained whole beside the adapters
};

/// Makes a skeleton ready to train as the recipe says: adapters attached (or every weight trainable), weights streamed
/// in, new parts drawn from training.seed.
Prepared prepare_model(torch::nn::Module& model, const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                       int64_t num_labels);

/// The model of a recipe, ready to train: skeleton, adapters, weights streamed in, new parts drawn from training.seed.
Classifier build_classifier(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                            const std::vector<std::string>& labels);

/// A trained classifier, to be used: `adapter` may be empty. `quant` is what it was trained on. Throws Error{Data} when
/// neither directory brings a head.
Classifier load_classifier(const std::string& model, const std::string& adapter,
                           recipe::StorageType dtype = recipe::StorageType::Auto,
                           recipe::StorageType compute = recipe::StorageType::Float32, const recipe::Quant& quant = {});

/// Packs encodings of samples into one batch.
models::TokenBatch make_batch(const std::vector<text::Encoding>& encodings);

/// Pictures of the model's size and channels as pixels [N, channels, height, width], normalised.
Tensor make_pixels(const std::vector<image::Picture>& pictures, const image::Preprocess& preprocess);

/// Logits [N, num_labels] float32 without gradients or dropout; all samples in one batch.
Tensor predict_logits(const Classifier& classifier, const std::vector<text::Encoding>& encodings);
Tensor predict_logits(const Classifier& classifier, const Tensor& pixels);

}  // namespace lathe::train
