#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/data/image_dataset.h"
#include "lathe/image/preprocess.h"
#include "lathe/recipe/resolve.h"

namespace lathe::data {

/// What an image classification recipe trains and evaluates on, all of it decoded and checked once.
struct ImageClassificationData {
  ImageDataset train;
  std::optional<ImageDataset> eval;
  image::Preprocess preprocess;
  image::Augment augment;
  double mixup_alpha = 0;  ///< 0: none
  int64_t num_workers = 0;
};

/// Opens data.train and data.eval (or holds out data.eval_fraction). Labels are `model`'s where the recipe or an
/// adapter names them; those of a checkpoint are taken where they contain all that occur, else those of the training
/// data. Throws Error{Data}; Error{Config} when fewer than two labels occur.
ImageClassificationData open_image_classification(const recipe::Recipe& recipe, const recipe::ResolvedModel& model);

/// data.eval alone, for an evaluation without training. Throws Error{Config} when the recipe names none.
ImageClassificationData open_image_evaluation(const recipe::Recipe& recipe, const arch::Arch& arch,
                                              const arch::ImageInput& input, const std::vector<std::string>& labels);

/// How pictures become the model's pixels. Requires an image model and a supported interpolation.
image::Preprocess preprocess_of(const arch::Arch& arch, const arch::ImageInput& input);

}  // namespace lathe::data
