#include "lathe/train/memory_meter.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/alignment.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>

namespace lathe::train {
namespace {

std::atomic<int64_t> live{0}, peak{0};

void add(int64_t bytes) {
  const int64_t now = live.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t most = peak.load(std::memory_order_relaxed);
  while (now > most && !peak.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
  }
}

// What lies before a tensor's data.
struct Header {
  void* block;
  size_t bytes;
};

// Blocks from malloc, aligned by hand. LibTorch's own come from posix_memalign, which takes more than the block and
// gives back the rest: glibc then never fits a block into the hole that one of the same size has left, and the heap of
// a training step grows to one and a half times what lives in it.
class MeteredAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::kCPU)};
    constexpr size_t kAlignment = c10::gAlignment;
    void* block = std::malloc(sizeof(Header) + kAlignment - 1 + bytes);
    if (block == nullptr)
      TORCH_CHECK_WITH(OutOfMemoryError, false, "DefaultCPUAllocator: can't allocate ", bytes, " bytes");
    add(static_cast<int64_t>(bytes));
    const uintptr_t first = reinterpret_cast<uintptr_t>(block) + sizeof(Header);
    void* data = reinterpret_cast<void*>((first + kAlignment - 1) / kAlignment * kAlignment);
    *header_of(data) = {block, bytes};
    return {data, data, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static Header* header_of(void* data) { return static_cast<Header*>(data) - 1; }
  static void release(void* data) {
    if (data == nullptr) return;
    const Header header = *header_of(data);
    add(-static_cast<int64_t>(header.bytes));
    std::free(header.block);
  }
};

}  // namespace

void MemoryMeter::install() {
  static const bool done = [] {
    c10::SetCPUAllocator(new MeteredAllocator, /*priority=*/1);  // never destroyed: tensors outlive static objects
    return true;
  }();
  (void)done;
}

int64_t MemoryMeter::live_bytes() { return live.load(std::memory_order_relaxed); }
int64_t MemoryMeter::peak_bytes() { return peak.load(std::memory_order_relaxed); }
void MemoryMeter::reset_peak() { peak.store(live_bytes(), std::memory_order_relaxed); }

int64_t mapped_bytes(const torch::nn::Module& model) {
  int64_t bytes = 0;
  const auto add_mapped = [&bytes](const at::Tensor& tensor) {
    if (tensor.storage().allocator() == nullptr) bytes += static_cast<int64_t>(tensor.nbytes());
  };
  for (const at::Tensor& parameter : model.parameters()) add_mapped(parameter);
  for (const at::Tensor& buffer : model.buffers()) add_mapped(buffer);
  return bytes;
}

}  // namespace lathe::train
