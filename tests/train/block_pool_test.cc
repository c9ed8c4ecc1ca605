#include "lathe/train/block_pool.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace lathe::train {
namespace {

TEST(BlockPool, IsWholeAgainWhenEverythingIsReleased) {
  constexpr size_t kBytes = size_t{1} << 20;
  BlockPool pool(kBytes);
  std::mt19937 random(1);
  struct Block {
    unsigned char* data;
    size_t bytes;
    unsigned char mark;
  };
  std::vector<Block> blocks;
  for (int round = 0; round < 5000; ++round) {
    if (blocks.empty() || random() % 2 == 0) {
      const size_t bytes = 1 + random() % 20000;
      size_t took = 0;
      auto* data = static_cast<unsigned char*>(pool.allocate(bytes, took));
      if (data == nullptr) continue;
      ASSERT_TRUE(pool.owns(data) && pool.owns(data + bytes - 1));
      ASSERT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
      ASSERT_GE(took, bytes);
      blocks.push_back({data, bytes, static_cast<unsigned char>(round)});
      std::memset(data, blocks.back().mark, bytes);
    } else {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      const Block block = blocks.back();
      for (size_t i = 0; i < block.bytes; ++i) ASSERT_EQ(block.data[i], block.mark) << "another block overlaps";
      EXPECT_EQ(pool.release(block.data), (block.bytes + 63) / 64 * 64);
      blocks.pop_back();
    }
  }
  for (const Block& block : blocks) pool.release(block.data);
  size_t took = 0;
  void* whole = pool.allocate(kBytes, took);
  EXPECT_NE(whole, nullptr) << "neighbours were not joined";
  EXPECT_EQ(pool.allocate(1, took), nullptr);
  EXPECT_EQ(pool.release(whole), kBytes);
}

TEST(BlockPool, TakesTheSmallestHoleThatFits) {
  BlockPool pool(4096);
  size_t took = 0;
  void *big = pool.allocate(1024, took), *wall = pool.allocate(64, took), *small = pool.allocate(128, took),
       *end = pool.allocate(64, took);
  pool.release(big);
  pool.release(small);
  EXPECT_EQ(pool.allocate(100, took), small);
  EXPECT_EQ(pool.allocate(1000, took), big);
  pool.release(wall);
  pool.release(end);
}

TEST(BlockPool, TrimGivesBackWhatLiesBetweenTheBlocks) {
  constexpr size_t kBytes = size_t{1} << 20;
  BlockPool pool(3 * kBytes);
  size_t took = 0;
  auto* first = static_cast<char*>(pool.allocate(kBytes + 100, took));  // ends within a page
  auto* freed = static_cast<char*>(pool.allocate(kBytes, took));
  std::memset(first, 1, kBytes + 100);
  std::memset(freed, 2, kBytes);
  pool.release(freed);
  pool.trim();
  EXPECT_TRUE(std::all_of(first, first + kBytes + 100, [](char byte) { return byte == 1; }));
  auto* again = static_cast<char*>(pool.allocate(kBytes, took));
  ASSERT_EQ(again, freed);
  EXPECT_LT(std::count(again, again + kBytes, 2), 2 * ::sysconf(_SC_PAGESIZE)) << "pages come back as zeros";
}

TEST(BlockPool, WithoutAddressesHasNoBlocks) {
  BlockPool none(0), impossible(SIZE_MAX / 2);
  size_t took = 0;
  int elsewhere = 0;
  EXPECT_EQ(none.allocate(64, took), nullptr);
  EXPECT_EQ(impossible.allocate(64, took), nullptr);
  EXPECT_FALSE(none.owns(&elsewhere));
}

}  // namespace
}  // namespace lathe::train
