#include "lathe/data/image_classification.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "lathe/base/error.h"

namespace lathe::data {
namespace {

ImageFormat format_of(recipe::DataFormat format) {
  switch (format) {
    case recipe::DataFormat::Idx:
      return ImageFormat::Idx;
    case recipe::DataFormat::ImageFolder:
      return ImageFormat::Folder;
    case recipe::DataFormat::ImageList:
      return ImageFormat::List;
    default:
      return ImageFormat::Auto;
  }
}

ImageDataset open_dataset(const recipe::Recipe& recipe, const std::vector<recipe::Path>& paths,
                          const arch::MixerArch& arch, std::vector<std::string> labels, bool labels_may_differ) {
  ImageDatasetOptions options;
  options.format = format_of(recipe.data.format);
  options.path_field = recipe.data.field("path");
  options.label_field = recipe.data.field("label");
  options.labels = std::move(labels);
  options.labels_may_differ = labels_may_differ;
  options.channels = arch.num_channels;
  std::vector<std::string> files;
  for (const recipe::Path& path : paths) files.push_back(path.resolved);
  return ImageDataset::open(files, options);
}

Error refusal(Diagnostic diagnostic, const std::string& problem, const std::string& hint = "") {
  diagnostic.problem = problem;
  diagnostic.hint = hint;
  return {ErrorKind::Config, std::move(diagnostic)};
}

}  // namespace

image::Preprocess preprocess_of(const arch::Arch& arch, const arch::ImageInput& input) {
  const auto& mixer = std::get<arch::MixerArch>(arch);
  const image::Filter filter = input.interpolation == "bilinear" ? image::Filter::Bilinear : image::Filter::Bicubic;
  return {mixer.num_channels, mixer.image_height, mixer.image_width, filter, input.crop_pct, input.mean, input.std};
}

ImageClassificationData open_image_classification(const recipe::Recipe& recipe, const recipe::ResolvedModel& model) {
  const auto& mixer = std::get<arch::MixerArch>(model.config.arch);
  ImageClassificationData data;
  const bool of_checkpoint = recipe.data.labels.empty() && model.labels == model.config.labels;
  data.train = open_dataset(recipe, recipe.data.train, mixer, model.labels, of_checkpoint);
  const std::vector<std::string>& labels = data.train.label_names();
  if (labels.size() < 2)
    throw refusal(recipe.at("data.train"),
                  Diagnostic::expected("at least two labels in the training data", std::to_string(labels.size())));
  if (recipe.data.eval_fraction > 0) data.eval = data.train.split_off(recipe.data.eval_fraction);
  if (!recipe.data.eval.empty()) data.eval = open_dataset(recipe, recipe.data.eval, mixer, labels, false);
  const std::string& place = recipe.data.train.front().resolved;
  if (data.train.size() == 0) throw data_error(place, "leaves no training samples");
  if (data.eval && data.eval->size() == 0) throw data_error(place, "leaves no evaluation samples");
  data.preprocess = preprocess_of(model.config.arch, *model.config.image);
  data.num_workers = recipe.data.num_workers;
  if (!recipe.data.image) return data;
  for (const recipe::Augmentation augmentation : recipe.data.image->augment) {
    data.augment.flip |= augmentation == recipe::Augmentation::Flip;
    data.augment.crop |= augmentation == recipe::Augmentation::Crop;
    if (augmentation == recipe::Augmentation::Mixup) data.mixup_alpha = recipe.data.image->mixup_alpha;
  }
  return data;
}

ImageClassificationData open_image_evaluation(const recipe::Recipe& recipe, const arch::Arch& arch,
                                              const arch::ImageInput& input, const std::vector<std::string>& labels) {
  if (recipe.data.eval.empty()) throw refusal(recipe.at("data.eval"), "is required to evaluate", "add data.eval=FILE");
  ImageClassificationData data;
  data.eval = open_dataset(recipe, recipe.data.eval, std::get<arch::MixerArch>(arch), labels, false);
  data.preprocess = preprocess_of(arch, input);
  data.num_workers = recipe.data.num_workers;
  return data;
}

}  // namespace lathe::data
