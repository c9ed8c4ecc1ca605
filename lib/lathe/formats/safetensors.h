#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lathe::formats {

/// The element types of the safetensors format (0.8.0), in its order: writers put the last one first.
enum class Dtype {
  Bool,
  F4,
  F6_E2M3,
  F6_E3M2,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  C64,
  F64,
  I64,
  U64,
};
constexpr int kNumDtypes = static_cast<int>(Dtype::U64) + 1;

/// The name in the file: "BF16".
std::string_view dtype_name(Dtype dtype);
/// 4 and 6 for the packed ones.
int64_t dtype_bits(Dtype dtype);

struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  ///< bytes from the start of the data
  uint64_t end = 0;

  uint64_t num_bytes() const { return end - begin; }
  bool operator==(const TensorInfo&) const = default;
};

/// A tensor of a model directory and the file that holds it.
struct TensorLocation {
  TensorInfo info;
  std::string file;
  uint64_t data_offset = 0;  ///< SafetensorsHeader's, of the file
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  ///< in the order of their data
  std::map<std::string, std::string> metadata;
  uint64_t data_offset = 0;  ///< of the first tensor's first byte in the file
};

/// Reads and checks the header of a safetensors file; the data is not read.
///
/// File    u64 little-endian N <= 100,000,000; N bytes of JSON {name: {dtype, shape, data_offsets}, "__metadata__":
///         {string: string}}, spaces allowed after it; the tensors' bytes without holes, overlaps or anything after
///         them
/// Source  github.com/huggingface/safetensors, "Format": every rule of its reader, and those that it leaves out: the
///         header begins with '{', no key twice, no unknown key in an entry, sizes fit 63 bits
/// Throws  Error{Data} naming the file and the tensor. What is no safetensors file at all (pickle, Git LFS pointer, web
///         page, GGUF, nothing) is called by its name, with the way out.
/// Holds   memory stays within a small multiple of the header that is really there.
SafetensorsHeader read_safetensors_header(const std::string& path);

/// The same from bytes: `head` is the file's start, at least the whole header if there is one.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size,
                                           const std::string& file);

/// Lays out tensors for a writer: sorts them by descending dtype and by name, sets begin and end, and returns the
/// file's first bytes, up to the data (a multiple of 8). The bytes are those of the Python package.
/// Requires distinct names other than "__metadata__", all text in UTF-8, sizes that do not overflow.
std::string make_safetensors_header(std::vector<TensorInfo>& tensors,
                                    const std::map<std::string, std::string>& metadata);

/// "[2, 3]".
std::string shape_text(const std::vector<int64_t>& shape);

/// A tensor's name for messages: printable, its middle left out when it is very long.
std::string tensor_label(const std::string& name);

}  // namespace lathe::formats
