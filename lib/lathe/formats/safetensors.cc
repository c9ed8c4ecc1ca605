#include "lathe/formats/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/json.h"
#include "lathe/base/text.h"
#include "lathe/formats/safetensors_sax.h"

namespace lathe::formats {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kLengthBytes = 8;

struct DtypeRow {
  std::string_view name;
  int64_t bits;
};

constexpr std::array<DtypeRow, kNumDtypes> kDtypes = {{
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
}};

uint64_t little_endian(uint64_t value) {
  return std::endian::native == std::endian::big ? __builtin_bswap64(value) : value;
}

struct Magic {
  std::string_view start;
  const char* problem;
  const char* hint;
};

using namespace std::string_view_literals;
constexpr const char* kPickled = "holds pickled data, which can run code when read";
constexpr const char* kConvert =
    "Lathe reads safetensors only; in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
    "\"model.safetensors\")";
constexpr const char* kDownload = "download the file itself";
constexpr std::array<Magic, 13> kMagics = {{
    {"version https://git-lfs"sv, "is a Git LFS pointer, not the file itself", "run git lfs pull"},
    {"PK\x03\x04"sv, kPickled, kConvert},
    {"\x80\x02"sv, kPickled, kConvert},
    {"\x80\x03"sv, kPickled, kConvert},
    {"\x80\x04"sv, kPickled, kConvert},
    {"\x80\x05"sv, kPickled, kConvert},
    {"GGUF"sv, "is a GGUF file", "Lathe reads safetensors only"},
    {"\x89HDF"sv, "is an HDF5 file", "Lathe reads safetensors only"},
    {"\x1f\x8b"sv, "is compressed with gzip", "unpack it first"},
    {"<!doctype"sv, "is a web page", kDownload},
    {"<html"sv, "is a web page", kDownload},
    {"<?xml"sv, "is an XML page", kDownload},
    {"{"sv, "is JSON text", "expected a model.safetensors beside it"},
}};

// Only for what did not pass as a header: the lengths 640 and 1152 begin with the bytes of pickle's protocols 2 and 4.
[[noreturn]] void throw_not_safetensors(std::string_view head, const std::string& file, Error otherwise) {
  const size_t text_start = std::min(head.find_first_not_of(" \t\r\n"), head.size());
  for (const std::string_view start : {head.substr(0, 64), head.substr(text_start, 64)}) {
    std::string lower(start);
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
    for (const Magic& magic : kMagics) {
      if (start.starts_with(magic.start) || lower.starts_with(magic.start)) {
        throw data_error(file, magic.problem, magic.hint);
      }
    }
  }
  throw otherwise;
}

// The JSON between the length and the data; `rest` is the file without the length.
std::string_view header_json(std::string_view head, uint64_t file_size, const std::string& file) {
  if (file_size == 0) throw data_error(file, "is empty");
  const auto refuse = [&](Error error) { throw_not_safetensors(head, file, std::move(error)); };
  if (head.size() < kLengthBytes) {
    refuse(data_error(file, Diagnostic::expected("a safetensors file of at least 8 bytes", std::to_string(file_size))));
  }
  uint64_t length = 0;
  std::memcpy(&length, head.data(), sizeof length);
  length = little_endian(length);
  if (length > kMaxHeaderBytes) {
    refuse(data_error(file,
                      Diagnostic::expected("a safetensors header of at most 100000000 bytes", std::to_string(length))));
  }
  if (length > file_size - kLengthBytes || length > head.size() - kLengthBytes) {
    refuse(data_error(file,
                      Diagnostic::expected("a safetensors header of " + std::to_string(length) + " bytes",
                                           "a file of " + std::to_string(file_size)),
                      "the file is cut: download it again"));
  }
  const std::string_view json = head.substr(kLengthBytes, length);
  if (!json.starts_with('{')) refuse(data_error(file, "the safetensors header does not begin with '{'"));
  return json;
}

// The bits of a tensor, or none if they, or the strides of its view, overflow.
std::optional<uint64_t> checked_bits(const std::vector<int64_t>& shape, int64_t bits) {
  int64_t total = bits;
  bool empty = false;
  for (const int64_t size : shape) {
    empty = empty || size == 0;
    if (__builtin_mul_overflow(total, std::max<int64_t>(size, 1), &total)) return std::nullopt;
  }
  return empty ? 0 : static_cast<uint64_t>(total);
}

void check_size(const TensorInfo& info, const std::string& file) {
  const std::string label = tensor_label(info.name);
  const std::optional<uint64_t> bits = checked_bits(info.shape, dtype_bits(info.dtype));
  if (!bits) throw data_error_in(file, label + ".shape", "the size overflows");
  if (*bits % 8 != 0) {
    throw data_error_in(
        file, label + ".shape",
        "does not fill whole bytes: " + std::to_string(*bits) + " bits of " + std::string(dtype_name(info.dtype)));
  }
  if (info.end < info.begin || info.end - info.begin != *bits / 8) {
    throw data_error_in(file, label + ".data_offsets",
                        Diagnostic::expected(std::to_string(*bits / 8) + " bytes for this shape and dtype",
                                             std::to_string(info.begin) + " to " + std::to_string(info.end)));
  }
}

// No hole, no overlap, nothing after the end.
void check_layout(std::vector<TensorInfo>& tensors, uint64_t data_bytes, const std::string& file) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t reached = 0;
  for (const TensorInfo& tensor : tensors) {
    const std::string where = std::to_string(tensor.begin) + " while those before it end at " + std::to_string(reached);
    if (tensor.begin < reached) throw data_error_in(file, tensor_label(tensor.name), "overlaps: begins at " + where);
    if (tensor.begin > reached)
      throw data_error_in(file, tensor_label(tensor.name), "leaves a hole: begins at " + where);
    reached = tensor.end;
  }
  if (reached == data_bytes) return;
  throw data_error(file, Diagnostic::expected(std::to_string(reached) + " bytes of data", std::to_string(data_bytes)),
                   data_bytes < reached ? "the file is cut: download it again" : "something follows the last tensor");
}

}  // namespace

std::string_view dtype_name(Dtype dtype) { return kDtypes.at(static_cast<size_t>(dtype)).name; }
int64_t dtype_bits(Dtype dtype) { return kDtypes.at(static_cast<size_t>(dtype)).bits; }

std::optional<Dtype> find_dtype(std::string_view name) {
  const auto* row =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeRow& known) { return known.name == name; });
  if (row == kDtypes.end()) return std::nullopt;
  return static_cast<Dtype>(row - kDtypes.begin());
}

std::string shape_text(const std::vector<int64_t>& shape) {
  constexpr size_t kShown = 16;
  std::vector<std::string> sizes;
  for (size_t i = 0; i < std::min(shape.size(), kShown); ++i) sizes.push_back(std::to_string(shape[i]));
  return "[" + join(sizes, ", ") + (shape.size() > kShown ? ", ...]" : "]");
}

std::string tensor_label(const std::string& name) {
  constexpr size_t kEdge = 96;
  if (name.size() <= 2 * kEdge) return printable(name);
  return printable(name.substr(0, kEdge)) + "..." + printable(name.substr(name.size() - kEdge));
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size,
                                           const std::string& file) {
  const std::string_view text(reinterpret_cast<const char*>(head.data()), head.size());
  const std::string_view json = header_json(text, file_size, file);
  SafetensorsHeader header;
  read_header_json(json, file, header);
  header.data_offset = kLengthBytes + json.size();
  for (const TensorInfo& info : header.tensors) check_size(info, file);
  check_layout(header.tensors, file_size - header.data_offset, file);
  return header;
}

SafetensorsHeader read_safetensors_header(const std::string& path) {
  FileHead head = read_file_head(path, 256);
  uint64_t length = 0;
  std::memcpy(&length, head.bytes.data(), std::min(head.bytes.size(), sizeof length));
  length = little_endian(length);
  if (length <= kMaxHeaderBytes) head = read_file_head(path, kLengthBytes + length);
  return parse_safetensors_header(std::as_bytes(std::span(head.bytes)), head.file_size, path);
}

std::string make_safetensors_header(std::vector<TensorInfo>& tensors,
                                    const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(b.dtype, a.name) < std::tie(a.dtype, b.name);
  });
  std::string text = "{";
  if (!metadata.empty()) text += "\"__metadata__\":" + Json(metadata).dump();
  uint64_t offset = 0;
  for (TensorInfo& tensor : tensors) {
    tensor.begin = offset;
    offset += checked_bits(tensor.shape, dtype_bits(tensor.dtype)).value() / 8;
    tensor.end = offset;
    if (text.size() > 1) text += ',';
    text += Json(tensor.name).dump() + ":{\"dtype\":\"" + std::string(dtype_name(tensor.dtype)) +
            "\",\"shape\":" + Json(tensor.shape).dump() + ",\"data_offsets\":[" + std::to_string(tensor.begin) + "," +
            std::to_string(tensor.end) + "]}";
  }
  text += '}';
  text.append((kLengthBytes - text.size() % kLengthBytes) % kLengthBytes, ' ');
  const uint64_t length = little_endian(text.size());
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + text;
}

}  // namespace lathe::formats
