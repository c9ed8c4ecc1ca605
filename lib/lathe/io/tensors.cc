#include "lathe/io/tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::io {
namespace {

using formats::Dtype;

std::optional<at::ScalarType> torch_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::Bool: return at::kBool;
    case Dtype::U8: return at::kByte;
    case Dtype::I8: return at::kChar;
    case Dtype::F8_E5M2: return at::kFloat8_e5m2;
    case Dtype::F8_E4M3: return at::kFloat8_e4m3fn;
    case Dtype::F8_E8M0: return at::kFloat8_e8m0fnu;
    case Dtype::I16: return at::kShort;
    case Dtype::U16: return at::kUInt16;
    case Dtype::F16: return at::kHalf;
    case Dtype::BF16: return at::kBFloat16;
    case Dtype::I32: return at::kInt;
    case Dtype::U32: return at::kUInt32;
    case Dtype::F32: return at::kFloat;
    case Dtype::C64: return at::kComplexFloat;
    case Dtype::F64: return at::kDouble;
    case Dtype::I64: return at::kLong;
    case Dtype::U64: return at::kUInt64;
    case Dtype::F4:
    case Dtype::F6_E2M3:
    case Dtype::F6_E3M2: break;
  }
  return std::nullopt;
}

Dtype format_dtype(at::ScalarType type) {
  for (int i = 0; i <= static_cast<int>(Dtype::U64); ++i) {
    if (torch_type(static_cast<Dtype>(i)) == type) return static_cast<Dtype>(i);
  }
  TORCH_CHECK_VALUE(false, "write_safetensors: the format has no dtype for ", type);
}

}  // namespace

at::ScalarType scalar_type(Dtype dtype, const std::string& file, const std::string& tensor) {
  const auto type = torch_type(dtype);
  if (!type) throw data_error_in(file, printable(tensor), "dtype " + std::string(formats::dtype_name(dtype)) + " is not supported");
  return *type;
}

TensorFile::TensorFile(const std::string& path)
    : path_(path), file_(std::make_shared<const MappedFile>(path)), header_(formats::parse_safetensors_header(file_->bytes(), file_->bytes().size(), path)) {}

Tensor TensorFile::tensor(const formats::TensorInfo& info) const {
  const auto options = at::TensorOptions().dtype(scalar_type(info.dtype, path_, info.name));
  if (info.begin == info.end) return at::empty(info.shape, options);
  std::byte* data = file_->bytes().data() + header_.data_offset + info.begin;
  const Tensor view = at::from_blob(data, info.shape, [mapping = file_](void*) {}, options);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % view.element_size() == 0;
  return aligned ? view : view.clone();
}

NamedTensors TensorFile::tensors() const {
  NamedTensors all;
  for (const formats::TensorInfo& info : header_.tensors) all.emplace_back(info.name, tensor(info));
  return all;
}

Tensor ModelTensors::tensor(const formats::TensorLocation& location) {
  return files_.try_emplace(location.file, location.file).first->second.tensor(location.info);
}

void write_safetensors(const std::string& path, const NamedTensors& tensors, const std::map<std::string, std::string>& metadata) {
  std::map<std::string, Tensor> by_name(tensors.begin(), tensors.end());
  std::vector<formats::TensorInfo> infos;
  for (const auto& [name, tensor] : by_name) infos.push_back({name, format_dtype(tensor.scalar_type()), tensor.sizes().vec(), 0, 0});
  AtomicFile file(path);
  file.write(formats::make_safetensors_header(infos, metadata));
  for (const formats::TensorInfo& info : infos) {
    const Tensor tensor = by_name.at(info.name).detach().to(at::kCPU).contiguous();
    file.write(std::span(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()));
  }
  file.commit();
}

}  // namespace lathe::io
