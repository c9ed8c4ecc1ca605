#include "lathe/formats/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/json.h"
#include "lathe/base/text.h"

namespace lathe::formats {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct DtypeRow {
  Dtype dtype;
  std::string_view name;
  int64_t bits;
};

constexpr std::array<DtypeRow, 20> kDtypes = {{
    {Dtype::Bool, "BOOL", 8},   {Dtype::F4, "F4", 4},           {Dtype::F6_E2M3, "F6_E2M3", 6}, {Dtype::F6_E3M2, "F6_E3M2", 6},
    {Dtype::U8, "U8", 8},       {Dtype::I8, "I8", 8},           {Dtype::F8_E5M2, "F8_E5M2", 8}, {Dtype::F8_E4M3, "F8_E4M3", 8},
    {Dtype::F8_E8M0, "F8_E8M0", 8}, {Dtype::I16, "I16", 16},    {Dtype::U16, "U16", 16},        {Dtype::F16, "F16", 16},
    {Dtype::BF16, "BF16", 16},  {Dtype::I32, "I32", 32},        {Dtype::U32, "U32", 32},        {Dtype::F32, "F32", 32},
    {Dtype::C64, "C64", 64},    {Dtype::F64, "F64", 64},        {Dtype::I64, "I64", 64},        {Dtype::U64, "U64", 64},
}};

const DtypeRow& dtype_row(Dtype dtype) {
  return *std::find_if(kDtypes.begin(), kDtypes.end(), [dtype](const DtypeRow& row) { return row.dtype == dtype; });
}

std::optional<uint64_t> checked_product(const std::vector<int64_t>& shape, int64_t bits) {
  uint64_t product = static_cast<uint64_t>(bits);
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(product, static_cast<uint64_t>(size), &product)) return std::nullopt;
  }
  return product;
}

// What an array of non-negative integers under `key` holds.
std::vector<uint64_t> read_sizes(const JsonObject& entry, const std::string& key) {
  const Json* value = entry.find(key);
  if (value == nullptr || !value->is_array()) {
    throw entry.error(key, Diagnostic::expected("an array of integers", value == nullptr ? "nothing" : describe(*value)));
  }
  std::vector<uint64_t> sizes;
  for (const Json& item : *value) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      throw entry.error(key, Diagnostic::expected("integers from 0 to 2^63 - 1", describe(item)));
    }
    sizes.push_back(item.get<uint64_t>());
  }
  return sizes;
}

TensorInfo read_entry(const std::string& name, const Json& value, const std::string& file) {
  const JsonObject entry(value, file, printable(name));
  for (const auto& [key, unused] : value.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") throw entry.error(key, "unknown key", "known: dtype, shape, data_offsets");
  }
  TensorInfo info;
  info.name = name;
  const std::string dtype = entry.string("dtype");
  const auto* row = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeRow& known) { return known.name == dtype; });
  if (row == kDtypes.end()) throw entry.error("dtype", "unknown dtype " + quote(dtype));
  info.dtype = row->dtype;
  for (const uint64_t size : read_sizes(entry, "shape")) info.shape.push_back(static_cast<int64_t>(size));
  const std::vector<uint64_t> offsets = read_sizes(entry, "data_offsets");
  if (offsets.size() != 2) throw entry.error("data_offsets", Diagnostic::expected("two offsets", std::to_string(offsets.size())));
  info.begin = offsets[0];
  info.end = offsets[1];
  const std::optional<uint64_t> bits = checked_product(info.shape, row->bits);
  if (!bits) throw entry.error("shape", "the size overflows");
  if (*bits % 8 != 0) throw entry.error("shape", "does not fill whole bytes of " + dtype);
  if (info.end < info.begin || info.end - info.begin != *bits / 8) {
    throw entry.error("data_offsets", Diagnostic::expected(std::to_string(*bits / 8) + " bytes for this shape and dtype",
                                                           std::to_string(info.begin) + " to " + std::to_string(info.end)));
  }
  return info;
}

// No hole, no overlap, nothing after the end.
void check_layout(std::vector<TensorInfo>& tensors, uint64_t data_bytes, const std::string& file) {
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  uint64_t reached = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin != reached) {
      throw data_error_in(file, printable(tensor.name), tensor.begin < reached ? "overlaps the tensor before it" : "a hole lies before its data");
    }
    reached = tensor.end;
  }
  if (reached != data_bytes) {
    throw data_error(file, Diagnostic::expected(std::to_string(reached) + " bytes of data", std::to_string(data_bytes)),
                     data_bytes < reached ? "the file is cut: download it again" : "");
  }
}

}  // namespace

std::string_view dtype_name(Dtype dtype) { return dtype_row(dtype).name; }
int64_t dtype_bits(Dtype dtype) { return dtype_row(dtype).bits; }

void refuse_what_is_not_safetensors(std::span<const std::byte> head, const std::string& file) {
  const std::string_view text(reinterpret_cast<const char*>(head.data()), std::min<size_t>(head.size(), 64));
  constexpr const char* kConvert =
      "Lathe reads safetensors only; in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), \"model.safetensors\")";
  if (head.empty()) throw data_error(file, "is empty");
  if (text.starts_with("version https://git-lfs")) throw data_error(file, "is a Git LFS pointer, not the file itself", "run git lfs pull");
  if (text.starts_with("PK\x03\x04") || text.starts_with("\x80\x02") || text.starts_with("\x80\x04")) {
    throw data_error(file, "holds pickled data, which can run code when read", kConvert);
  }
  if (text.starts_with("<!DOCTYPE") || text.starts_with("<html")) throw data_error(file, "is a web page", "download the file itself");
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size, const std::string& file) {
  refuse_what_is_not_safetensors(head, file);
  if (file_size < 8 || head.size() < 8) throw data_error(file, Diagnostic::expected("a header of at least 8 bytes", std::to_string(file_size)));
  uint64_t length = 0;
  std::memcpy(&length, head.data(), sizeof length);
  if constexpr (std::endian::native == std::endian::big) length = __builtin_bswap64(length);
  if (length > kMaxHeaderBytes) throw data_error(file, Diagnostic::expected("a header of at most 100000000 bytes", std::to_string(length)));
  if (length > file_size - 8 || head.size() < 8 + length) {
    throw data_error(file, Diagnostic::expected("a header of " + std::to_string(length) + " bytes", std::to_string(file_size - 8)),
                     "the file is cut: download it again");
  }
  const std::string_view text(reinterpret_cast<const char*>(head.data()) + 8, length);
  if (!text.starts_with('{')) throw data_error(file, "the header does not begin with '{'");
  const Json json = parse_json(text, file, {.max_depth = 8});
  SafetensorsHeader header;
  header.data_offset = 8 + length;
  for (const auto& [name, value] : json.items()) {
    if (name != "__metadata__") {
      header.tensors.push_back(read_entry(name, value, file));
      continue;
    }
    const JsonObject metadata(value, file, name);
    for (const auto& [key, unused] : value.items()) header.metadata[key] = metadata.string(key);
  }
  check_layout(header.tensors, file_size - header.data_offset, file);
  return header;
}

SafetensorsHeader read_safetensors_header(const std::string& path) {
  const MappedFile file(path);
  return parse_safetensors_header(file.bytes(), file.bytes().size(), path);
}

std::string make_safetensors_header(std::vector<TensorInfo>& tensors, const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    const int64_t bits_a = dtype_bits(a.dtype), bits_b = dtype_bits(b.dtype);
    return bits_a != bits_b ? bits_a > bits_b : a.name < b.name;
  });
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (TensorInfo& tensor : tensors) {
    tensor.begin = offset;
    offset += checked_product(tensor.shape, dtype_bits(tensor.dtype)).value() / 8;
    tensor.end = offset;
    header[tensor.name] = {{"dtype", dtype_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {tensor.begin, tensor.end}}};
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  uint64_t length = text.size();
  if constexpr (std::endian::native == std::endian::big) length = __builtin_bswap64(length);
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + text;
}

}  // namespace lathe::formats
