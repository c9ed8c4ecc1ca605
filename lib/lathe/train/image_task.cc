#include <ATen/ops/tensor.h>

#include <utility>

#include "lathe/data/image_loader.h"
#include "lathe/data/mixup.h"
#include "lathe/nn/modules.h"
#include "lathe/train/classifier_task.h"

namespace lathe::train {
namespace {

class ImageTask : public DataTask<data::ImageClassificationData> {
 public:
  ImageTask(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, data::ImageClassificationData data)
      : DataTask(recipe, resolved, std::move(data)),
        num_patches_(resolved.max_length),
        loader_(data_.train, data_.preprocess, data_.augment, data_.num_workers) {}

  void announce(const std::vector<int64_t>& samples, uint64_t key) override { loader_.announce(samples, key); }

  BatchLoss loss(const std::vector<int64_t>& samples, const nn::Pass& pass) override {
    Tensor pixels = make_pixels(loader_.take(samples, pass.key), data_.preprocess);
    std::vector<int64_t> labels;
    for (const int64_t index : samples) labels.push_back(data_.train.label(index));
    const Tensor truth = at::tensor(labels, at::kLong);
    const auto sum_of = [&](const Tensor& logits, const Tensor& of) {
      return nn::cross_entropy_sum(logits, of, label_smoothing_);
    };
    BatchLoss result;
    result.tokens = static_cast<int64_t>(samples.size()) * num_patches_;
    if (data_.mixup_alpha > 0) {
      const data::Mixup mixup = data::draw_mixup(data_.mixup_alpha, truth.size(0), pass.key);
      const Tensor partners = at::tensor(mixup.partners, at::kLong);
      pixels = pixels.index_select(0, partners).mul_(1 - mixup.weight).add_(pixels, mixup.weight);
      const Tensor logits = classifier_.images().forward(pixels, pass);
      result.sum =
          mixup.weight * sum_of(logits, truth) + (1 - mixup.weight) * sum_of(logits, truth.index_select(0, partners));
    } else {
      result.sum = sum_of(classifier_.images().forward(pixels, pass), truth);
    }
    return result;
  }

  Json describe(const std::vector<int64_t>& samples) const override {
    Json rows = Json::array();
    for (const int64_t index : samples) {
      rows.push_back({{"place", data_.train.place(index)},
                      {"label", data_.train.label_names()[static_cast<size_t>(data_.train.label(index))]}});
    }
    return rows;
  }

 private:
  int64_t num_patches_;
  data::ImageLoader loader_;  // of data_.train
};

}  // namespace

std::unique_ptr<Task> open_image_task(const recipe::Recipe& recipe) {
  const recipe::ResolvedModel resolved = recipe::resolve_model(recipe);
  return std::make_unique<ImageTask>(recipe, resolved, data::open_image_classification(recipe, resolved));
}

}  // namespace lathe::train
