#include "lathe/formats/idx.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include "expect_error.h"
#include "formats/mutations.h"
#include "lathe/base/files.h"
#include "temporary_directory.h"

namespace lathe::formats {
namespace {

using testing::error_text;
using ::testing::HasSubstr;
using testing::mutated;
using testing::TemporaryDirectory;

std::string idx(const std::vector<uint32_t>& shape, const std::string& elements) {
  std::string bytes = {0, 0, 8, static_cast<char>(shape.size())};
  for (const uint32_t size : shape) {
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(size >> shift);
  }
  return bytes + elements;
}

std::string gzip(const TemporaryDirectory& folder, const std::string& bytes) {
  const std::string file = folder / "made.gz";
  const gzFile out = ::gzopen(file.c_str(), "wb");
  ::gzwrite(out, bytes.data(), static_cast<unsigned>(bytes.size()));
  ::gzclose(out);
  return lathe::read_file(file, 1 << 20);
}

class ReadIdx : public ::testing::Test {
 protected:
  std::string refusal(const std::string& bytes, size_t dimensions = 3) {
    const std::string file = folder.write("f", bytes);
    const std::string text = error_text(ErrorKind::Data, [&] { read_idx(file, dimensions); });
    return text.substr(std::min(text.size(), file.size() + 2));
  }
  TemporaryDirectory folder;
  const std::string two_by_three = idx({2, 1, 3}, "abcdef");
};

TEST_F(ReadIdx, ReadsPlainAndGzip) {
  for (const std::string& bytes : {two_by_three, gzip(folder, two_by_three)}) {
    const IdxFile file = read_idx(folder.write("f", bytes), 3);
    EXPECT_EQ(file.shape, (std::vector<int64_t>{2, 1, 3}));
    EXPECT_EQ(std::string(file.bytes.begin(), file.bytes.end()), "abcdef");
  }
}

TEST_F(ReadIdx, SaysWhatIsWrong) {
  EXPECT_EQ(refusal(""), "is empty");
  EXPECT_EQ(refusal("abcdefgh"),
            "expected an IDX file of unsigned bytes, the magic number 0x00000803, got other bytes");
  EXPECT_THAT(refusal(two_by_three, 1), HasSubstr("the magic number 0x00000801"));
  EXPECT_EQ(refusal(two_by_three.substr(0, 10)), "ends in its header");
  EXPECT_EQ(refusal(two_by_three.substr(0, 20)), "expected 6 elements, got 4 (the file is cut)");
  EXPECT_EQ(refusal(two_by_three + "g"), "is longer than its header says");
  EXPECT_EQ(refusal(idx({2, 0, 3}, "")), "holds no elements");
  EXPECT_THAT(refusal(idx({4096, 4096, 2}, "a")), HasSubstr("claims 4096 x 4096 x 2 bytes, in a file of 17"));
  EXPECT_THAT(refusal(idx({0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}, "a")), HasSubstr("expected at most 16 GiB"));
  EXPECT_EQ(error_text(ErrorKind::Data, [] { read_idx("/none", 3); }), "/none: no such file");
}

TEST_F(ReadIdx, RefusesDamagedGzip) {
  std::string packed = gzip(folder, two_by_three);
  for (size_t size = 12; size < packed.size(); ++size) {
    const std::string text = refusal(packed.substr(0, size));
    EXPECT_FALSE(text.empty()) << size;
  }
  packed[packed.size() - 6] ^= 1;  // the checksum
  EXPECT_THAT(refusal(packed), HasSubstr("damaged gzip: "));
}

TEST_F(ReadIdx, SurvivesMutations) {
  const std::string packed = gzip(folder, two_by_three);
  int refused = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    const std::string file = folder.write("f", mutated(i % 2 == 0 ? two_by_three : packed, i));
    try {
      EXPECT_LE(read_idx(file, 3).bytes.size(), size_t{1} << 20);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::Data) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
}

TEST(IdxLabelsPath, FollowsTheImages) {
  EXPECT_EQ(idx_labels_path("/d/t10k-images-idx3-ubyte.gz"), "/d/t10k-labels-idx1-ubyte.gz");
  EXPECT_THAT(error_text(ErrorKind::Data, [] { idx_labels_path("/images-idx3/x.gz"); }), HasSubstr("\"images-idx3\""));
}

}  // namespace
}  // namespace lathe::formats
