#include "lathe/train/evaluate.h"

#include <ATen/ops/tensor.h>

#include <algorithm>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/text.h"
#include "lathe/data/image_loader.h"
#include "lathe/nn/modules.h"

namespace lathe::train {
namespace {

constexpr size_t kShownBytes = 400;
constexpr int64_t kShownPixels = 112;

// The samples from `first` to before `last`.
struct Batch {
  Tensor logits;
  std::vector<int64_t> labels;
};
using Predict = std::function<Batch(int64_t first, int64_t last)>;

Evaluation evaluate_batches(const Classifier& classifier, int64_t num_samples, int64_t batch_size,
                            const std::function<bool()>& cancelled, const Predict& predict) {
  Scores scores(classifier.labels.size());
  double loss = 0;
  for (int64_t first = 0; first < num_samples; first += batch_size) {
    if (cancelled && cancelled())
      throw Error(ErrorKind::Interrupted, Diagnostic{"", 0, 0, "", "stopped during an evaluation", ""});
    const Batch batch = predict(first, std::min(first + batch_size, num_samples));
    loss += nn::cross_entropy_sum(batch.logits, at::tensor(batch.labels, at::kLong)).item<double>();
    const Tensor logits = batch.logits.contiguous();
    for (size_t i = 0; i < batch.labels.size(); ++i)
      scores.add(logits.const_data_ptr<float>() + i * classifier.labels.size(), batch.labels[i]);
  }
  return scores.evaluation(loss);
}

image::Picture thumbnail(image::Picture picture, image::Filter filter) {
  const int64_t longer = std::max(picture.height, picture.width);
  if (longer <= kShownPixels) return picture;
  const auto scaled = [&](int64_t side) { return std::max<int64_t>(1, side * kShownPixels / longer); };
  return image::resize(picture, scaled(picture.height), scaled(picture.width), filter);
}

}  // namespace

Evaluation evaluate(const Classifier& classifier, const data::TextClassificationData& data, int64_t batch_size,
                    const std::function<bool()>& cancelled) {
  const data::TextDataset& dataset = *data.eval;
  return evaluate_batches(classifier, dataset.size(), batch_size, cancelled, [&](int64_t first, int64_t last) {
    std::vector<text::Encoding> encodings;
    std::vector<int64_t> labels;
    for (int64_t i = first; i < last; ++i) {
      encodings.push_back(data.encode(dataset, i));
      labels.push_back(dataset.sample(i).label);
    }
    return Batch{predict_logits(classifier, encodings), std::move(labels)};
  });
}

Evaluation evaluate(const Classifier& classifier, const data::ImageClassificationData& data, int64_t batch_size,
                    const std::function<bool()>& cancelled) {
  const data::ImageDataset& dataset = *data.eval;
  data::ImageLoader loader(dataset, data.preprocess, {}, data.num_workers);
  const auto samples_from = [&](int64_t first) {
    std::vector<int64_t> samples;
    for (int64_t i = first; i < std::min(first + batch_size, dataset.size()); ++i) samples.push_back(i);
    return samples;
  };
  return evaluate_batches(classifier, dataset.size(), batch_size, cancelled, [&](int64_t first, int64_t last) {
    if (last < dataset.size()) loader.announce(samples_from(last), 0);
    const std::vector<int64_t> samples = samples_from(first);
    std::vector<int64_t> labels;
    for (const int64_t sample : samples) labels.push_back(dataset.label(sample));
    const Tensor pixels = make_pixels(loader.take(samples, 0), data.preprocess);
    return Batch{predict_logits(classifier, pixels), std::move(labels)};
  });
}

Json show_sample(const data::TextClassificationData& data, int64_t index) {
  const data::TextSample& sample = data.eval->sample(index);
  Json shown = {{"place", data.eval->files()[static_cast<size_t>(sample.file)] + ":" + std::to_string(sample.line)}};
  if (!sample.text.empty()) shown["text"] = cut_utf8(sample.text, kShownBytes);
  return shown;
}

Json show_sample(const data::ImageClassificationData& data, int64_t index) {
  const std::string place = data.eval->place(index);
  const image::Picture seen =
      image::fit(image::to_channels(data.eval->picture(index), data.preprocess.channels, place), data.preprocess);
  return {{"place", place}, {"picture", base64(image::encode_png(thumbnail(seen, data.preprocess.filter)))}};
}

}  // namespace lathe::train
