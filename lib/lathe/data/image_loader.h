#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

#include "lathe/data/image_dataset.h"
#include "lathe/image/preprocess.h"

namespace lathe::data {

/// Batches of pictures in the model's size, augmented, prepared ahead on threads of its own. A batch is a function of
/// its samples and key alone: whether it was announced, and the number of threads, change nothing. `dataset` must
/// outlive the loader. Used from one thread.
class ImageLoader {
 public:
  /// `num_workers` 0: everything is made where take() is called.
  ImageLoader(const ImageDataset& dataset, image::Preprocess preprocess, image::Augment augment, int64_t num_workers);
  ~ImageLoader();
  ImageLoader(const ImageLoader&) = delete;
  ImageLoader& operator=(const ImageLoader&) = delete;

  /// Says that take() will be called with these: the threads begin, batches in the order of their announcement.
  void announce(const std::vector<int64_t>& samples, uint64_t key);
  /// The pictures, one per sample. Waits, and helps, until they are there. Throws Error{Data} as
  /// ImageDataset::picture() does.
  std::vector<image::Picture> take(const std::vector<int64_t>& samples, uint64_t key);

 private:
  struct Batch {
    std::vector<int64_t> samples;
    uint64_t key;
    std::vector<image::Picture> pictures;
    size_t begun = 0, done = 0;
    std::exception_ptr problem{};

    bool is_begun() const { return begun == samples.size(); }
    bool is_done() const { return done == samples.size(); }
  };
  using BatchPointer = std::shared_ptr<Batch>;

  image::Picture make(const Batch& batch, size_t index) const;
  void make_next(const BatchPointer& batch, std::unique_lock<std::mutex>& lock);
  void work(const std::stop_token& stop);

  const ImageDataset& dataset_;
  image::Preprocess preprocess_;
  image::Augment augment_;
  std::mutex mutex_;  // of the batches
  std::condition_variable_any changed_;
  std::list<BatchPointer> batches_;
  std::vector<std::jthread> workers_;
};

}  // namespace lathe::data
