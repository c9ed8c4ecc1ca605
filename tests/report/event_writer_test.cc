#include "lathe/report/event_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "expect_error.h"
#include "lathe/base/files.h"
#include "temporary_directory.h"

namespace lathe::report {
namespace {

using testing::error_text;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using testing::TemporaryDirectory;

// "ab" -> "6162"
std::string hex(const std::string& bytes) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string out;
  for (const char c : bytes) {
    out += kDigits[static_cast<unsigned char>(c) >> 4];
    out += kDigits[c & 15];
  }
  return out;
}

TEST(MaskedCrc32c, HasTheValuesOfRfc3720) {
  // RFC 3720 B.4: 32 bytes of zeros give 8A9136AA; of 0xFF, 62A8AB43; "123456789" gives E3069283.
  const auto masked = [](uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xA282EAD8U; };
  EXPECT_EQ(masked_crc32c(std::string(32, '\0')), masked(0x8A9136AA));
  EXPECT_EQ(masked_crc32c(std::string(32, '\xFF')), masked(0x62A8AB43));
  EXPECT_EQ(masked_crc32c("123456789"), masked(0xE3069283));
}

TEST(EventWriter, AppendsRecordsThatReadersSeeAtOnce) {
  const TemporaryDirectory scratch;
  EventWriter writer(scratch / "logs");
  EXPECT_THAT(writer.path().filename().string(),
              MatchesRegex("events\\.out\\.tfevents\\.[0-9]+\\..+\\." + std::to_string(::getpid()) + "\\.lathe"));
  const std::string first = read_file(writer.path(), 1000);
  // Length 24, its check, wall_time, then file_version (field 3) of 13 bytes.
  ASSERT_EQ(first.size(), 12U + 24 + 4);
  EXPECT_EQ(hex(first.substr(0, 8)), "1800000000000000");
  EXPECT_EQ(first.substr(12 + 9, 15),
            "\x1A\x0D"
            "brain.Event:2");

  writer.add_scalars(300, 1.5, {{"loss", 0.5}});
  const std::string record = read_file(writer.path(), 1000).substr(first.size());
  // wall_time 1.5, step 300 (varint ac02), summary of 13 bytes {value of 11 bytes {tag "loss", simple_value 0.5f}}.
  EXPECT_EQ(hex(record.substr(12, record.size() - 16)),
            "09000000000000f83f"
            "10ac02"
            "2a0d"
            "0a0b"
            "0a046c6f7373"
            "150000003f");
}

TEST(EventWriter, FailsWhereNothingCanBeWritten) {
  const TemporaryDirectory scratch;
  const std::string file = scratch.write("file", "");
  EXPECT_THAT(error_text(ErrorKind::Run, [&] { EventWriter writer(scratch / "file"); }),
              HasSubstr("cannot be written"));
  EXPECT_THAT(error_text(ErrorKind::Run, [&] { EventWriter writer(scratch / "file" / "logs"); }),
              HasSubstr(file + "/logs: cannot be written"));
}

}  // namespace
}  // namespace lathe::report
