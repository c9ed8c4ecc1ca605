#include "lathe/io/tensors.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <limits>

#include "expect_error.h"
#include "formats/safetensors_bytes.h"
#include "golden.h"
#include "lathe/base/files.h"
#include "temporary_directory.h"

namespace lathe::io {
namespace {

using formats::Dtype;
using ::testing::EndsWith;
using testing::error_text;
using testing::golden;
using ::testing::HasSubstr;
using testing::safetensors_bytes;
using testing::TemporaryDirectory;

std::string bytes_of(const Tensor& tensor) {
  const Tensor whole = tensor.contiguous();
  return {static_cast<const char*>(whole.const_data_ptr()), whole.nbytes()};
}

/// The same dtype, shape and bits.
void expect_same(const Tensor& actual, const Tensor& expected, const std::string& what) {
  EXPECT_EQ(actual.scalar_type(), expected.scalar_type()) << what;
  EXPECT_EQ(actual.sizes(), expected.sizes()) << what;
  EXPECT_EQ(bytes_of(actual), bytes_of(expected)) << what;
}

TEST(TensorFile, ReadsEveryTypeThatTorchSaved) {
  const TensorFile file(golden("formats/torch_types.safetensors"));
  const std::map<std::string, at::ScalarType> types = {{"bool", at::kBool},
                                                       {"u8", at::kByte},
                                                       {"i8", at::kChar},
                                                       {"i16", at::kShort},
                                                       {"u16", at::kUInt16},
                                                       {"i32", at::kInt},
                                                       {"u32", at::kUInt32},
                                                       {"i64", at::kLong},
                                                       {"u64", at::kUInt64},
                                                       {"f16", at::kHalf},
                                                       {"bf16", at::kBFloat16},
                                                       {"f32", at::kFloat},
                                                       {"f64", at::kDouble},
                                                       {"c64", at::kComplexFloat},
                                                       {"f8_e4m3", at::kFloat8_e4m3fn},
                                                       {"f8_e5m2", at::kFloat8_e5m2},
                                                       {"f8_e4m3fnuz", at::kFloat8_e4m3fnuz},
                                                       {"f8_e5m2fnuz", at::kFloat8_e5m2fnuz}};
  for (const auto& [name, type] : types) {
    expect_same(file.tensor(name), at::arange(6).reshape({2, 3}).to(type), name);
  }
  expect_same(file.tensor("scalar"), at::full({}, -1.5), "scalar");
  EXPECT_EQ(file.tensor("empty").sizes(), (std::vector<int64_t>{3, 0, 2}));
  EXPECT_EQ(file.tensors().size(), types.size() + 3);
}

TEST(WriteSafetensors, WritesTheFileOfThePythonPackage) {
  const std::string path = golden("formats/torch_types.safetensors");
  const TemporaryDirectory directory;
  const std::string copy = (directory / "copy.safetensors").string();
  write_safetensors(copy, TensorFile(path).tensors());
  EXPECT_EQ(read_file(copy, 1 << 20), read_file(path, 1 << 20));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
}

TEST(WriteSafetensors, KeepsEveryBitWhateverTheStrides) {
  const Tensor odd = at::tensor({std::numeric_limits<float>::quiet_NaN(), -0.0F, 1e-45F,
                                 std::numeric_limits<float>::infinity(), 1.0F, 2.0F})
                         .reshape({2, 3});
  const NamedTensors tensors = {{"plain", odd},
                                {"transposed", odd.t()},
                                {"every_other", at::arange(12, at::kLong).slice(0, 1, 12, 2)},
                                {"expanded", at::full({}, 7, at::kHalf).expand({3, 2})},
                                {"trained", at::ones({2}).requires_grad_()},
                                {"conjugate", at::complex(at::ones({2}), at::ones({2})).conj()},
                                {"shared", odd.select(0, 1)},
                                {"e8m0", at::arange(5).to(at::kByte).view(at::kFloat8_e8m0fnu)},
                                {"empty", at::empty({0, 4})}};
  const TemporaryDirectory directory;
  const std::string path = (directory / "f.safetensors").string();
  write_safetensors(path, tensors, {{"format", "pt"}, {"step", "7"}});
  const TensorFile file(path);
  EXPECT_EQ(file.header().metadata.at("step"), "7");
  ASSERT_EQ(file.header().tensors.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) expect_same(file.tensor(name), tensor.detach().resolve_conj(), name);
}

TEST(WriteSafetensors, RefusesWhatTheFormatCannotHold) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("f.safetensors", "old");
  const auto refusal = [&](const NamedTensors& tensors, const std::map<std::string, std::string>& metadata = {}) {
    try {
      write_safetensors(path, tensors, metadata);
    } catch (const c10::ValueError& error) {
      return std::string(error.what_without_backtrace());
    }
    return std::string("written");
  };
  const Tensor one = at::ones({1});
  EXPECT_THAT(refusal({{"a", one}, {"a", one}}), HasSubstr("write_safetensors: a tensor's name is there twice"));
  EXPECT_THAT(refusal({{"__metadata__", one}}), HasSubstr("write_safetensors: no tensor can be named __metadata__"));
  EXPECT_THAT(refusal({{"\xFF", one}}), HasSubstr("write_safetensors: not valid UTF-8: \"\\xFF\""));
  EXPECT_THAT(refusal({{"a", one}}, {{"k", "\xFF"}}), HasSubstr("write_safetensors: not valid UTF-8"));
  EXPECT_THAT(refusal({{"a", Tensor()}}), HasSubstr("write_safetensors: a has no data"));
  EXPECT_THAT(refusal({{"a", at::empty({2}, at::kMeta)}}), HasSubstr("write_safetensors: a has no data"));
  EXPECT_THAT(refusal({{"a", at::empty({2}, at::kComplexDouble)}}),
              HasSubstr("write_safetensors: a: the format has no dtype for ComplexDouble"));
  EXPECT_EQ(read_file(path, 100), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
}

TEST(WriteSafetensors, LeavesTheOldFileWhenWritingFails) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("f.safetensors", "old");
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  for (const rlim_t limit : {0, 50, 4096, 100000}) {  // within the header, within the data
    const rlimit small{limit, old_limit.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    const std::string text = error_text(ErrorKind::Resource, [&] {
      write_safetensors(path, {{"a", at::zeros({100000})}});
    });
    setrlimit(RLIMIT_FSIZE, &old_limit);
    EXPECT_EQ(text, path + ": cannot write: File too large (ulimit -f raises the limit)");
    EXPECT_EQ(read_file(path, 100), "old");
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1);
  }
  std::signal(SIGXFSZ, old_handler);
}

TEST(TensorFile, GivesViewsThatOutliveItAndNeverWriteToTheFile) {
  const TemporaryDirectory directory;
  const std::string path = (directory / "f.safetensors").string();
  write_safetensors(path, {{"a", at::arange(4, at::kFloat)}});
  auto file = std::make_unique<TensorFile>(path);
  const Tensor first = file->tensor("a");
  const Tensor second = file->tensor("a");
  EXPECT_EQ(first.data_ptr(), second.data_ptr());
  file.reset();
  std::filesystem::remove(path);
  expect_same(first, at::arange(4, at::kFloat), "after the file is gone");
  write_safetensors(path, {{"a", first}});
  const TensorFile again(path);
  again.tensor("a").fill_(9);
  expect_same(TensorFile(path).tensor("a"), at::arange(4, at::kFloat), "after a write to a view");
}

TEST(TensorFile, CopiesDataThatIsNotAligned) {
  std::string bytes = safetensors_bytes(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
      0);
  const float values[] = {1.5F, -2.0F};
  bytes += '\x05';
  bytes.append(reinterpret_cast<const char*>(values), sizeof values);
  const TemporaryDirectory directory;
  const TensorFile file(directory.write("f.safetensors", bytes));
  const Tensor b = file.tensor("b");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data_ptr()) % sizeof(float), 0U);
  expect_same(b, at::tensor({1.5F, -2.0F}), "b");
}

TEST(TensorFile, RefusesWhatLibTorchCannotHold) {
  const TemporaryDirectory directory;
  const auto refusal = [&](const std::string& dtype, const std::string& shape, const std::string& data) {
    const std::string head = R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":[0,)" +
                             std::to_string(data.size()) + "]}}";
    const TensorFile file(directory.write("f.safetensors", safetensors_bytes(head, 0) + data));
    return error_text(ErrorKind::Data, [&] { file.tensor("a"); });
  };
  for (const char* dtype : {"F4", "F6_E2M3", "F6_E3M2"}) {
    EXPECT_THAT(refusal(dtype, "[4]", std::string(dtype[1] == '4' ? 2 : 3, '\0')),
                EndsWith("f.safetensors: a: dtype " + std::string(dtype) + " is not supported"));
  }
  EXPECT_THAT(refusal("BOOL", "[2]", std::string("\x01\x02", 2)),
              EndsWith("f.safetensors: a: expected bytes 0 or 1 in BOOL, got others"));
}

TEST(TensorFile, NamesTheMissingTensor) {
  const TensorFile file(golden("formats/torch_types.safetensors"));
  EXPECT_EQ(file.find("none"), nullptr);
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { file.tensor("none"); }),
              EndsWith("torch_types.safetensors: none: is missing"));
}

TEST(ModelTensors, ReadsAcrossShards) {
  const TemporaryDirectory directory;
  directory.write("config.json", "{}");
  write_safetensors((directory / "1.safetensors").string(), {{"a", at::arange(3)}});
  write_safetensors((directory / "2.safetensors").string(), {{"b", at::arange(5)}, {"c", at::ones({2, 2})}});
  directory.write("model.safetensors.index.json",
                  R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}})");
  const auto model = formats::ModelDirectory::open(directory.path().string());
  ModelTensors tensors;
  expect_same(tensors.tensor(*model.find("a")), at::arange(3), "a");
  expect_same(tensors.tensor(*model.find("b")), at::arange(5), "b");
  expect_same(tensors.tensor(*model.find("c")), at::ones({2, 2}), "c");
}

TEST(ModelTensors, NoticesAFileThatWasReplaced) {
  const TemporaryDirectory directory;
  directory.write("config.json", "{}");
  const std::string path = (directory / "model.safetensors").string();
  write_safetensors(path, {{"a", at::arange(1000)}});
  const auto model = formats::ModelDirectory::open(directory.path().string());
  write_safetensors(path, {{"a", at::arange(3)}});
  ModelTensors tensors;
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { tensors.tensor(*model.find("a")); }),
              EndsWith("model.safetensors: a: has changed since it was checked"));
}

}  // namespace
}  // namespace lathe::io
