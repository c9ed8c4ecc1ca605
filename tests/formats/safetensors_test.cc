#include "lathe/formats/safetensors.h"

#include <algorithm>
#include <filesystem>

#include "expect_error.h"
#include "formats/mutations.h"
#include "formats/safetensors_bytes.h"
#include "golden.h"
#include "lathe/base/files.h"
#include "lathe/base/random.h"
#include "temporary_directory.h"

namespace lathe::formats {
namespace {

using ::testing::AllOf;
using testing::error_text;
using testing::golden;
using ::testing::HasSubstr;
using testing::mutated;
using testing::safetensors_bytes;
using ::testing::StartsWith;
using testing::TemporaryDirectory;

constexpr uint64_t kMaxGoldenBytes = 1 << 20;

SafetensorsHeader parse(const std::string& bytes) {
  return parse_safetensors_header(std::as_bytes(std::span(bytes)), bytes.size(), "f");
}

std::string header_refusal(const std::string& bytes) {
  return error_text(ErrorKind::Data, [&] { parse(bytes); });
}

std::vector<std::string> names(const SafetensorsHeader& header) {
  std::vector<std::string> names;
  for (const TensorInfo& info : header.tensors) names.push_back(info.name);
  return names;
}

TEST(SafetensorsHeader, ReadsEveryDtypeOfThePythonPackage) {
  const SafetensorsHeader header = read_safetensors_header(golden("formats/raw_types.safetensors"));
  std::vector<Dtype> dtypes;
  for (const TensorInfo& info : header.tensors) {
    EXPECT_EQ(info.shape, (std::vector<int64_t>{2, 2})) << info.name;
    EXPECT_EQ(static_cast<int64_t>(info.num_bytes()), 4 * dtype_bits(info.dtype) / 8) << info.name;
    dtypes.push_back(info.dtype);
  }
  std::vector<Dtype> expected;  // all but those that the package knows and cannot write
  for (int i = kNumDtypes - 1; i >= 0; --i) {
    const auto dtype = static_cast<Dtype>(i);
    if (dtype != Dtype::F6_E2M3 && dtype != Dtype::F6_E3M2) expected.push_back(dtype);
  }
  EXPECT_EQ(dtypes, expected);
  const SafetensorsHeader six = parse(safetensors_bytes(
      R"({"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]},"b":{"dtype":"F6_E3M2","shape":[2,2],"data_offsets":[3,6]}})",
      6));
  EXPECT_EQ(six.tensors[0].dtype, Dtype::F6_E2M3);
  EXPECT_EQ(six.tensors[1].dtype, Dtype::F6_E3M2);
}

TEST(SafetensorsHeader, ReadsShapesNamesAndMetadata) {
  const SafetensorsHeader header = read_safetensors_header(golden("formats/torch_types.safetensors"));
  EXPECT_EQ(header.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
  std::map<std::string, TensorInfo> infos;
  for (const TensorInfo& info : header.tensors) infos[info.name] = info;
  EXPECT_EQ(infos.size(), 21U);
  EXPECT_TRUE(infos.at("scalar").shape.empty());
  EXPECT_EQ(infos.at("scalar").num_bytes(), 4U);
  EXPECT_EQ(infos.at("empty").shape, (std::vector<int64_t>{3, 0, 2}));
  EXPECT_EQ(infos.at("empty").num_bytes(), 0U);
  EXPECT_EQ(infos.at("bf16").dtype, Dtype::BF16);
  EXPECT_EQ(infos.at("quote \" and \xC3\xA9\n").dtype, Dtype::U8);
}

TEST(MakeSafetensorsHeader, WritesTheBytesOfThePythonPackage) {
  for (const char* name : {"formats/torch_types.safetensors", "formats/raw_types.safetensors"}) {
    const std::string bytes = read_file(golden(name), kMaxGoldenBytes);
    SafetensorsHeader header = parse(bytes);
    std::reverse(header.tensors.begin(), header.tensors.end());
    EXPECT_EQ(make_safetensors_header(header.tensors, header.metadata), bytes.substr(0, header.data_offset)) << name;
  }
}

TEST(SafetensorsHeader, AcceptsWhatTheFormatAllows) {
  EXPECT_TRUE(parse(safetensors_bytes("{}", 0)).tensors.empty());
  EXPECT_EQ(parse(safetensors_bytes("{\"__metadata__\":{}} \n  ", 0)).data_offset, 8U + 23U);
  // Offsets in any order of the keys; empty tensors between others.
  const SafetensorsHeader header = parse(safetensors_bytes(
      R"({"b":{"data_offsets":[2,4],"shape":[2],"dtype":"U8"},"e":{"dtype":"F32","shape":[0,9],"data_offsets":[2,2]},)"
      R"("a":{"dtype":"U8","shape":[1,2],"data_offsets":[0,2]}})",
      4));
  EXPECT_EQ(names(header), (std::vector<std::string>{"a", "e", "b"}));
}

TEST(SafetensorsHeader, IsNotTakenForAPickleByItsLength) {
  for (const size_t length : {0x0280, 0x0380, 0x0480, 0x0580}) {
    EXPECT_TRUE(parse(safetensors_bytes("{}" + std::string(length - 2, ' '), 0)).tensors.empty()) << length;
  }
}

TEST(SafetensorsHeader, ReadsTheHeaderOfAFileLargerThanMemory) {
  const TemporaryDirectory directory;
  const uint64_t size = uint64_t{1} << 40;
  const std::string number = std::to_string(size);
  const std::string head =
      safetensors_bytes(R"({"a":{"dtype":"U8","shape":[)" + number + R"(],"data_offsets":[0,)" + number + "]}}", 0);
  const std::string path = directory.write("big.safetensors", head);
  std::filesystem::resize_file(path, head.size() + size);
  EXPECT_EQ(read_safetensors_header(path).tensors.at(0).num_bytes(), size);
}

struct Hostile {
  const char* name;
  std::string json;
  size_t data_bytes;
  std::string message;
};

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

std::vector<Hostile> hostile_headers() {
  const std::string big = "9223372036854775807";
  const auto one = [](const std::string& value) { return R"({"a":)" + value + "}"; };
  const std::string good = entry("U8", "[2]", "[0,2]");
  return {
      {"unknown_dtype", one(entry("F128", "[2]", "[0,2]")), 2, "f: a.dtype: unknown dtype \"F128\""},
      {"overlap", R"({"a":)" + good + R"(,"b":)" + entry("U8", "[2]", "[1,3]") + "}", 3,
       "f: b: overlaps: begins at 1 while those before it end at 2"},
      {"alias", R"({"a":)" + good + R"(,"b":)" + good + "}", 2,
       "f: b: overlaps: begins at 0 while those before it end at 2"},
      {"hole", R"({"a":)" + good + R"(,"b":)" + entry("U8", "[2]", "[3,5]") + "}", 5,
       "f: b: leaves a hole: begins at 3 while those before it end at 2"},
      {"hole_at_the_start", one(entry("U8", "[2]", "[1,3]")), 3,
       "f: a: leaves a hole: begins at 1 while those before it end at 0"},
      {"backwards", one(entry("U8", "[2]", "[2,0]")), 2,
       "f: a.data_offsets: expected 2 bytes for this shape and dtype, got 2 to 0"},
      {"lying_size", one(entry("F32", "[2]", "[0,2]")), 2,
       "f: a.data_offsets: expected 8 bytes for this shape and dtype, got 0 to 2"},
      {"trailing_bytes", one(good), 3, "f: expected 2 bytes of data, got 3 (something follows the last tensor)"},
      {"cut_data", one(good), 1, "f: expected 2 bytes of data, got 1 (the file is cut: download it again)"},
      {"trailing_bytes_without_tensors", "{}", 1,
       "f: expected 0 bytes of data, got 1 (something follows the last tensor)"},
      {"overflow", one(entry("U8", "[" + big + "," + big + "]", "[0,1]")), 1, "f: a.shape: the size overflows"},
      {"overflow_in_bits", one(entry("F64", "[" + big + "]", "[0,1]")), 1, "f: a.shape: the size overflows"},
      {"overflow_of_an_empty_one", one(entry("U8", "[0," + big + ",3]", "[0,0]")), 0, "f: a.shape: the size overflows"},
      {"wrapping_to_a_small_size", one(entry("U8", "[4294967296,4294967296]", "[0,0]")), 0,
       "f: a.shape: the size overflows"},
      {"half_a_byte", one(entry("F4", "[3]", "[0,1]")), 1, "f: a.shape: does not fill whole bytes: 12 bits of F4"},
      {"six_bits", one(entry("F6_E3M2", "[3]", "[0,2]")), 2,
       "f: a.shape: does not fill whole bytes: 18 bits of F6_E3M2"},
      {"negative_size", one(entry("U8", "[-1]", "[0,2]")), 2, "f: a.shape: expected integers from 0, got -1"},
      {"fraction", one(entry("U8", "[2.0]", "[0,2]")), 2, "f: a.shape: expected integers from 0, got 2.0"},
      {"size_above_63_bits", one(entry("U8", "[9223372036854775808]", "[0,2]")), 2,
       "f: a.shape: expected integers below 2^63, got 9223372036854775808"},
      {"size_above_64_bits", one(entry("U8", "[99999999999999999999]", "[0,2]")), 2,
       "f: a.shape: expected integers from 0, got 99999999999999999999"},
      {"text_size", one(entry("U8", "[\"2\"]", "[0,2]")), 2, "f: a.shape: expected integers from 0, got \"2\""},
      {"nested_shape", one(entry("U8", "[[2]]", "[0,2]")), 2, "f: a.shape: expected integers from 0, got an array"},
      {"shape_is_a_number", one(entry("U8", "2", "[0,2]")), 2, "f: a.shape: expected an array of integers, got 2"},
      {"dtype_is_a_number", one(R"({"dtype":5,"shape":[],"data_offsets":[0,1]})"), 1,
       "f: a.dtype: expected a string, got 5"},
      {"one_offset", one(entry("U8", "[2]", "[0]")), 2, "f: a.data_offsets: expected two offsets, got 1"},
      {"three_offsets", one(entry("U8", "[2]", "[0,2,2]")), 2, "f: a.data_offsets: expected two offsets, got more"},
      {"no_dtype", one(R"({"shape":[2],"data_offsets":[0,2]})"), 2, "f: a: has no dtype"},
      {"no_offsets", one(R"({"dtype":"U8","shape":[2]})"), 2, "f: a: has no data_offsets"},
      {"extra_key", one(R"({"dtype":"U8","shape":[2],"data_offsets":[0,2],"code":"x"})"), 2,
       "f: a: unknown key \"code\" (known: dtype, shape, data_offsets)"},
      {"key_twice", one(R"({"dtype":"U8","dtype":"I8","shape":[2],"data_offsets":[0,2]})"), 2, "f: a: has dtype twice"},
      {"tensor_twice", R"({"a":)" + good + R"(,"a":)" + good + "}", 2, "f: a: is listed twice"},
      {"tensor_twice_by_escape", R"({"a":)" + good + R"(,"\u0061":)" + good + "}", 2, "f: a: is listed twice"},
      {"metadata_twice", R"({"__metadata__":{},"__metadata__":{}})", 0, "f: __metadata__: is listed twice"},
      {"metadata_key_twice", R"({"__metadata__":{"k":"1","k":"2"}})", 0, "f: __metadata__.k: is listed twice"},
      {"metadata_of_numbers", R"({"__metadata__":{"k":1}})", 0, "f: __metadata__.k: expected a string, got 1"},
      {"metadata_list", R"({"__metadata__":[]})", 0, "f: __metadata__: expected an object, got an array"},
      {"metadata_null", R"({"__metadata__":null})", 0, "f: __metadata__: expected an object, got null"},
      {"entry_is_null", R"({"a":null})", 0, "f: a: expected an object, got null"},
      {"list_of_tensors", "[]", 0, "f: the safetensors header does not begin with '{'"},
      {"leading_space", " {}", 0, "f: the safetensors header does not begin with '{'"},
      {"byte_order_mark", "\xEF\xBB\xBF{}", 0, "f: the safetensors header does not begin with '{'"},
      {"empty_header", "", 0, "f: the safetensors header does not begin with '{'"},
      {"not_utf8", "{\"\xFF\":1}", 0, "f: the safetensors header is not valid UTF-8 at byte 2"},
      {"lone_surrogate", R"({"\ud800":1})", 0, "f: bad JSON at byte 9 of the safetensors header"},
      {"two_values", "{}{}", 0, "f: bad JSON at byte 3 of the safetensors header"},
      {"text_after_nul", std::string("{}\0hidden", 9), 0, "f: bad JSON at byte 2 of the safetensors header"},
      {"comment", "{}//", 0, "f: bad JSON at byte 3 of the safetensors header"},
      {"unfinished", "{", 0, "f: bad JSON at byte 2 of the safetensors header"},
      {"deeply_nested", "{\"a\":" + std::string(100000, '['), 0, "f: a: expected an object, got an array"},
  };
}

TEST(SafetensorsHeader, RefusesEveryHostileHeaderWithItsOwnMessage) {
  for (const Hostile& hostile : hostile_headers()) {
    SCOPED_TRACE(hostile.name);
    EXPECT_EQ(header_refusal(safetensors_bytes(hostile.json, hostile.data_bytes)), hostile.message);
  }
}

TEST(SafetensorsHeader, RefusesLengthsThatTheFileDoesNotHave) {
  EXPECT_EQ(header_refusal("{}"), "f: is JSON text (expected a model.safetensors beside it)");
  EXPECT_EQ(header_refusal("abc"), "f: expected a safetensors file of at least 8 bytes, got 3");
  std::string bytes = safetensors_bytes("{}", 0);
  bytes[0] = 3;
  EXPECT_EQ(header_refusal(bytes),
            "f: expected a safetensors header of 3 bytes, got a file of 10 (the file is cut: download it again)");
  EXPECT_THAT(header_refusal("\x01\xE1\xF5\x05" + std::string(100, '\0')),
              StartsWith("f: expected a safetensors header of at most 100000000 bytes, got 100000001"));
  EXPECT_THAT(header_refusal(std::string(8, '\xFF') + "{}"), HasSubstr("got 18446744073709551615"));
}

TEST(SafetensorsHeader, CallsOtherFilesByTheirName) {
  const auto refusal_of_file = [](const std::string& content) {
    const TemporaryDirectory directory;
    const std::string path = directory.write("f.bin", content);
    return error_text(ErrorKind::Data, [&] { read_safetensors_header(path); });
  };
  const std::string tail(200, 'x');
  EXPECT_THAT(refusal_of_file(""), HasSubstr("f.bin: is empty"));
  EXPECT_THAT(refusal_of_file("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
              HasSubstr("is a Git LFS pointer, not the file itself (run git lfs pull)"));
  EXPECT_THAT(refusal_of_file("PK\x03\x04" + tail),
              AllOf(HasSubstr("holds pickled data, which can run code when read"), HasSubstr("save_file(torch.load(")));
  EXPECT_THAT(refusal_of_file("\x80\x02}q" + tail), HasSubstr("holds pickled data"));
  EXPECT_THAT(refusal_of_file("\n<!DOCTYPE html><html>" + tail), HasSubstr("is a web page (download the file itself)"));
  EXPECT_THAT(refusal_of_file("<HTML>" + tail), HasSubstr("is a web page"));
  EXPECT_THAT(refusal_of_file("<?xml version=\"1.0\"?><Error>"), HasSubstr("is an XML page"));
  EXPECT_THAT(refusal_of_file("GGUF" + tail), HasSubstr("is a GGUF file (Lathe reads safetensors only)"));
  EXPECT_THAT(refusal_of_file("Not found"), HasSubstr("expected a safetensors header of at most 100000000 bytes"));
  EXPECT_THAT(error_text(ErrorKind::Data, [] { read_safetensors_header("/no/such/file"); }), HasSubstr("no such file"));
}

TEST(TensorLabel, BoundsWhatAMessageQuotes) {
  EXPECT_EQ(tensor_label("a\nb"), "a\\x0Ab");
  EXPECT_LT(header_refusal(safetensors_bytes("{\"" + std::string(1 << 20, 'n') + "\":null}", 0)).size(), 300U);
}

// Half of the mutations keep the length field true, so that they reach the JSON.
std::string with_true_length(std::string bytes, size_t data_bytes) {
  if (bytes.size() < 8 + data_bytes) return bytes;
  const uint64_t length = bytes.size() - 8 - data_bytes;
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes;
}

void expect_round_trip(const SafetensorsHeader& header, uint64_t file_size) {
  uint64_t reached = 0;
  for (const TensorInfo& info : header.tensors) {
    ASSERT_EQ(info.begin, reached);
    reached = info.end;
  }
  ASSERT_EQ(header.data_offset + reached, file_size);
  std::vector<TensorInfo> infos = header.tensors;
  const std::string again = make_safetensors_header(infos, header.metadata) + std::string(reached, '\0');
  const SafetensorsHeader read = parse(again);
  ASSERT_EQ(read.metadata, header.metadata);
  ASSERT_EQ(read.tensors.size(), infos.size());
  std::map<std::string, TensorInfo> by_name;
  for (const TensorInfo& info : read.tensors) by_name[info.name] = info;
  for (const TensorInfo& info : infos) ASSERT_EQ(by_name.at(info.name), info);
}

TEST(SafetensorsHeader, RefusesOrRoundTripsTwentyThousandMutations) {
  int accepted = 0;
  int refused = 0;
  for (const char* name : {"formats/torch_types.safetensors", "formats/raw_types.safetensors"}) {
    const std::string original = read_file(golden(name), kMaxGoldenBytes);
    const size_t data_bytes = original.size() - parse(original).data_offset;
    for (uint64_t i = 0; i < 10000; ++i) {
      std::string bytes = original;
      for (uint64_t round = 0; round <= i % 3; ++round)
        bytes = mutated(std::move(bytes), make_key(name_key(name), i, round), 8);
      if (i % 2 == 0) bytes = with_true_length(std::move(bytes), data_bytes);
      try {
        const SafetensorsHeader header = parse(bytes);
        ++accepted;
        expect_round_trip(header, bytes.size());
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::Data);
        ++refused;
      }
      if (HasFatalFailure()) FAIL() << name << " mutation " << i;
    }
  }
  // Renamed tensors, changed data and equal-sized dtypes stay valid; the rest must not.
  EXPECT_GT(accepted, 500);
  EXPECT_GT(refused, 10000);
}

}  // namespace
}  // namespace lathe::formats
