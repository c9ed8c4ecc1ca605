#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lathe::formats {

/// The element types of the safetensors format.
enum class Dtype {
  Bool, F4, F6_E2M3, F6_E3M2, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, I16, U16, F16, BF16, I32, U32, F32, C64, F64, I64, U64,
};

std::string_view dtype_name(Dtype dtype);
int64_t dtype_bits(Dtype dtype);

struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  ///< bytes from the start of the data
  uint64_t end = 0;

  uint64_t num_bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  ///< in the order of their data
  std::map<std::string, std::string> metadata;
  uint64_t data_offset = 0;  ///< of the first tensor's first byte in the file
};

/// Reads and checks the header of a safetensors file; the data is not read.
///
/// File    u64 little-endian N, N bytes of JSON {name: {dtype, shape, data_offsets}, "__metadata__": {string: string}}, data
/// Source  github.com/huggingface/safetensors, "Format"; every rule of its reader, and those it leaves out: the header begins
///         with '{', no key twice, no unknown key in an entry
/// Throws  Error{Data} naming the file and the tensor
SafetensorsHeader read_safetensors_header(const std::string& path);

/// The same from bytes: `head` is the file's start, at least the whole header if there is one.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size, const std::string& file);

/// Lays out tensors for a writer: sorts them by descending alignment and name, sets begin and end, and returns the file's first
/// bytes, up to the data. Requires distinct names.
std::string make_safetensors_header(std::vector<TensorInfo>& tensors, const std::map<std::string, std::string>& metadata);

/// Throws Error{Data} when the file holds pickled data, a Git LFS pointer, a web page or nothing, saying what to do instead.
void refuse_what_is_not_safetensors(std::span<const std::byte> head, const std::string& file);

}  // namespace lathe::formats
