#include "lathe/train/memory_meter.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>

#include "lathe/train/block_pool.h"

namespace lathe::train {
namespace {

std::atomic<int64_t> live{0}, peak{0};

void add(int64_t bytes) {
  const int64_t now = live.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t most = peak.load(std::memory_order_relaxed);
  while (now > most && !peak.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
  }
}

constexpr size_t kBig = size_t{64} << 10;

// For the tensors from kBig on. An address space that is limited is left alone.
BlockPool& pool() {
  static auto* const blocks = [] {
    struct rlimit limit {};
    const bool limited = ::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY;
    const auto memory = static_cast<size_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    return new BlockPool(limited ? 0 : 2 * memory);  // never destroyed, as the allocator
  }();
  return *blocks;
}

class MeteredAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    size_t taken = 0;
    void* data = bytes < kBig ? nullptr : pool().allocate(bytes, taken);
    if (data == nullptr && bytes > 0) {
      c10::DataPtr inner = c10::GetDefaultCPUAllocator()->allocate(bytes);
      data = inner.release_context();
      taken = ::malloc_usable_size(data);
    }
    add(static_cast<int64_t>(taken));
    return {data, data, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static void release(void* data) {
    if (data == nullptr) return;
    if (pool().owns(data)) return add(-static_cast<int64_t>(pool().release(data)));
    add(-static_cast<int64_t>(::malloc_usable_size(data)));
    c10::GetDefaultCPUAllocator()->raw_deleter()(data);
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
void MemoryMeter::trim() {
  pool().trim();
  ::malloc_trim(0);
}

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
