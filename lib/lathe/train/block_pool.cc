#include "lathe/train/block_pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <iterator>

namespace lathe::train {
namespace {

constexpr size_t kAlignment = 64;

}  // namespace

BlockPool::BlockPool(size_t bytes) {
  if (bytes == 0) return;
  void* range = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return;
  (void)::madvise(range, bytes, MADV_HUGEPAGE);  // a step's first pass over its memory takes fewer faults
  begin_ = static_cast<std::byte*>(range);
  bytes_ = bytes;
  add_hole(begin_, bytes_);
}

BlockPool::~BlockPool() {
  if (begin_ != nullptr) ::munmap(begin_, bytes_);
}

void* BlockPool::allocate(size_t bytes, size_t& took) {
  const size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const std::scoped_lock lock(mutex_);
  const auto fit = sizes_.lower_bound({size, nullptr});
  if (fit == sizes_.end()) return nullptr;
  const auto [hole_size, at] = *fit;
  remove_hole(holes_.find(at));
  if (hole_size > size) add_hole(at + size, hole_size - size);
  blocks_[at] = size;
  took = size;
  return at;
}

size_t BlockPool::release(void* block) {
  const std::scoped_lock lock(mutex_);
  const auto found = blocks_.find(static_cast<std::byte*>(block));
  std::byte* at = found->first;
  const size_t taken = found->second;
  size_t size = taken;
  blocks_.erase(found);
  if (const auto after = holes_.find(at + size); after != holes_.end()) {
    size += after->second;
    remove_hole(after);
  }
  if (const auto next = holes_.lower_bound(at); next != holes_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == at) {
      at = before->first;
      size += before->second;
      remove_hole(before);
    }
  }
  add_hole(at, size);
  return taken;
}

void BlockPool::trim() {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const std::scoped_lock lock(mutex_);
  for (const auto& [at, size] : holes_) {
    const uintptr_t first = (reinterpret_cast<uintptr_t>(at) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(at) + size) / page * page;
    if (first < end) (void)::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
  }
}

void BlockPool::add_hole(std::byte* at, size_t bytes) {
  holes_.emplace(at, bytes);
  sizes_.emplace(bytes, at);
}

void BlockPool::remove_hole(Holes::iterator hole) {
  sizes_.erase({hole->second, hole->first});
  holes_.erase(hole);
}

}  // namespace lathe::train
