#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace lathe::train {

/// Blocks for big tensors in a range of addresses of their own: best fit, neighbours joined when they are free. What a
/// step leaves behind (a gradient, an optimizer's moment) lies elsewhere and splits no hole, so that each step finds
/// the range whole: with malloc alone, batches of ragged lengths grew the heap to one and a quarter times what lives in
/// it. Pages stay with the process once touched, until trim(). Any thread may call it.
class BlockPool {
 public:
  /// Reserves `bytes` of addresses, no memory; nothing where the system does not allow it.
  explicit BlockPool(size_t bytes);
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  /// A block aligned to 64 bytes, and the bytes that it `took`; null when no hole is big enough.
  void* allocate(size_t bytes, size_t& took);
  /// Returns the bytes that the block took.
  size_t release(void* block);
  /// Gives the pages between the blocks back to the system.
  void trim();
  bool owns(const void* block) const { return block >= begin_ && block < begin_ + bytes_; }

 private:
  using Holes = std::map<std::byte*, size_t>;

  void add_hole(std::byte* at, size_t bytes);
  void remove_hole(Holes::iterator hole);

  std::byte* begin_ = nullptr;
  size_t bytes_ = 0;
  std::mutex mutex_;
  Holes holes_;                                    // by address
  std::set<std::pair<size_t, std::byte*>> sizes_;  // the same holes, smallest first
  std::map<std::byte*, size_t> blocks_;
};

}  // namespace lathe::train
