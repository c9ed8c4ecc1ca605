#include "practice/measure.h"

#include <ATen/record_function.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "lathe/base/random.h"
#include "lathe/nn/counter_tensors.h"
#include "lathe/train/profiler.h"

namespace lathe::app::practice {
namespace {

// Stands before LibTorch's CPU allocator and knows each block that lives.
class BlockAllocator final : public c10::Allocator {
 public:
  static BlockAllocator& instance() {
    static auto* const allocator = new BlockAllocator;  // never destroyed: tensors outlive static objects
    return *allocator;
  }

  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::GetDefaultCPUAllocator()->allocate(bytes).release_context();
    const std::lock_guard lock(mutex_);
    if (data != nullptr) blocks_[data] = {static_cast<int64_t>(bytes), next_number_++};
    live_ += static_cast<int64_t>(bytes);
    peak_ = std::max(peak_, live_);
    return {data, data, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  std::pair<int64_t, int64_t> restart() {
    const std::lock_guard lock(mutex_);
    peak_ = live_;
    return {live_, next_number_};
  }
  int64_t live() {
    const std::lock_guard lock(mutex_);
    return live_;
  }
  int64_t peak() {
    const std::lock_guard lock(mutex_);
    return peak_;
  }
  std::vector<int64_t> blocks_from(int64_t number) {
    const std::lock_guard lock(mutex_);
    std::vector<int64_t> sizes;
    for (const auto& [data, block] : blocks_) {
      if (block.number >= number) sizes.push_back(block.bytes);
    }
    std::sort(sizes.begin(), sizes.end());
    return sizes;
  }

 private:
  struct Block {
    int64_t bytes = 0, number = 0;
  };

  BlockAllocator() { c10::SetCPUAllocator(this, /*priority=*/100); }
  static void release(void* data) {
    if (data == nullptr) return;
    BlockAllocator& self = instance();
    {
      const std::lock_guard lock(self.mutex_);
      self.live_ -= self.blocks_.at(data).bytes;
      self.blocks_.erase(data);
    }
    c10::GetDefaultCPUAllocator()->raw_deleter()(data);
  }

  std::mutex mutex_;
  std::unordered_map<void*, Block> blocks_;
  int64_t live_ = 0, peak_ = 0, next_number_ = 0;
};

}  // namespace

int64_t counted_flops(const std::function<void()>& run) {
  train::Profiler profiler(1);
  {
    const train::Profiler::Recording recording(profiler, 1);
    run();
  }
  int64_t flops = 0;
  for (const report::ProfileEvent& event : profiler.take().events) flops += event.flops;
  return flops;
}

std::map<std::string, double> counted_elements(const std::function<void()>& run) {
  static thread_local std::map<std::string, double> counted;
  counted.clear();
  const auto count = [](const at::RecordFunction& call, at::ObserverContext*) {
    for (const c10::IValue& output : call.outputs()) {
      if (output.isTensor()) counted[call.name()] += static_cast<double>(output.toTensor().numel());
    }
  };
  const auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback(nullptr, count).needsOutputs(true));
  run();
  at::removeCallback(handle);
  return counted;
}

ByteMeter::ByteMeter() { std::tie(live_before_, first_block_) = BlockAllocator::instance().restart(); }
int64_t ByteMeter::live() const { return BlockAllocator::instance().live() - live_before_; }
int64_t ByteMeter::peak() const { return BlockAllocator::instance().peak() - live_before_; }
std::vector<int64_t> ByteMeter::blocks() const { return BlockAllocator::instance().blocks_from(first_block_); }

double seconds_of(const std::function<void()>& run, int num_runs) {
  std::vector<double> seconds;
  for (int i = 0; i < num_runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + num_runs / 2, seconds.end());
  return seconds[static_cast<size_t>(num_runs / 2)];
}

Tensor drawn(at::IntArrayRef shape, const char* name, at::ScalarType dtype) {
  return nn::counter_normal(shape, make_key(name_key("practice"), name_key(name))).to(dtype);
}

bool same_bits(const Tensor& a, const Tensor& b) {
  if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return false;
  const Tensor left = a.detach().contiguous(), right = b.detach().contiguous();
  return std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

double relative_difference(const Tensor& a, const Tensor& b) {
  return ((a.detach() - b.detach()).norm() / b.detach().norm()).item<double>();
}

}  // namespace lathe::app::practice
