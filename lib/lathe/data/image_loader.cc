#include "lathe/data/image_loader.h"

#include <algorithm>
#include <utility>

#include "lathe/base/random.h"

namespace lathe::data {

ImageLoader::ImageLoader(const ImageDataset& dataset, image::Preprocess preprocess, image::Augment augment,
                         int64_t num_workers)
    : dataset_(dataset), preprocess_(std::move(preprocess)), augment_(augment) {
  for (int64_t i = 0; i < num_workers; ++i) workers_.emplace_back([this](const std::stop_token& stop) { work(stop); });
}

ImageLoader::~ImageLoader() {
  for (std::jthread& worker : workers_) worker.request_stop();
}

void ImageLoader::announce(const std::vector<int64_t>& samples, uint64_t key) {
  if (workers_.empty()) return;
  const std::lock_guard lock(mutex_);
  batches_.push_back(std::make_shared<Batch>(Batch{samples, key, std::vector<image::Picture>(samples.size())}));
  changed_.notify_all();
}

std::vector<image::Picture> ImageLoader::take(const std::vector<int64_t>& samples, uint64_t key) {
  std::unique_lock lock(mutex_);
  auto found = std::find_if(batches_.begin(), batches_.end(),
                            [&](const BatchPointer& batch) { return batch->key == key && batch->samples == samples; });
  if (found == batches_.end()) {
    found = batches_.insert(batches_.begin(),
                            std::make_shared<Batch>(Batch{samples, key, std::vector<image::Picture>(samples.size())}));
    changed_.notify_all();
  }
  const BatchPointer batch = *found;
  while (!batch->is_begun()) make_next(batch, lock);
  changed_.wait(lock, [&] { return batch->is_done(); });
  batches_.erase(found);
  if (batch->problem) std::rethrow_exception(batch->problem);
  return std::move(batch->pictures);
}

image::Picture ImageLoader::make(const Batch& batch, size_t index) const {
  const int64_t sample = batch.samples[index];
  image::Picture picture = image::to_channels(dataset_.picture(sample), preprocess_.channels, dataset_.place(sample));
  return image::augmented(picture, preprocess_, augment_, make_key(batch.key, name_key("augment"), index));
}

void ImageLoader::make_next(const BatchPointer& batch, std::unique_lock<std::mutex>& lock) {
  const size_t index = batch->begun++;
  lock.unlock();
  image::Picture picture;
  std::exception_ptr problem;
  try {
    picture = make(*batch, index);
  } catch (...) {
    problem = std::current_exception();
  }
  lock.lock();
  batch->pictures[index] = std::move(picture);
  if (problem) batch->problem = problem;
  ++batch->done;
  if (batch->is_done()) changed_.notify_all();
}

void ImageLoader::work(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  const auto first_open = [this] {
    const auto found =
        std::find_if(batches_.begin(), batches_.end(), [](const BatchPointer& batch) { return !batch->is_begun(); });
    return found == batches_.end() ? nullptr : *found;
  };
  while (changed_.wait(lock, stop, [&] { return first_open() != nullptr; })) make_next(first_open(), lock);
}

}  // namespace lathe::data
