#include "lathe/io/tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::io {
namespace {

using formats::Dtype;

static_assert(std::endian::native == std::endian::little, "the views of a file's bytes need its byte order");

constexpr const char* kMetadataName = "__metadata__";

std::optional<at::ScalarType> torch_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::Bool:
      return at::kBool;
    case Dtype::U8:
      return at::kByte;
    case Dtype::I8:
      return at::kChar;
    case Dtype::F8_E5M2:
      return at::kFloat8_e5m2;
    case Dtype::F8_E4M3:
      return at::kFloat8_e4m3fn;
    case Dtype::F8_E8M0:
      return at::kFloat8_e8m0fnu;
    case Dtype::F8_E4M3FNUZ:
      return at::kFloat8_e4m3fnuz;
    case Dtype::F8_E5M2FNUZ:
      return at::kFloat8_e5m2fnuz;
    case Dtype::I16:
      return at::kShort;
    case Dtype::U16:
      return at::kUInt16;
    case Dtype::F16:
      return at::kHalf;
    case Dtype::BF16:
      return at::kBFloat16;
    case Dtype::I32:
      return at::kInt;
    case Dtype::U32:
      return at::kUInt32;
    case Dtype::F32:
      return at::kFloat;
    case Dtype::C64:
      return at::kComplexFloat;
    case Dtype::F64:
      return at::kDouble;
    case Dtype::I64:
      return at::kLong;
    case Dtype::U64:
      return at::kUInt64;
    case Dtype::F4:
    case Dtype::F6_E2M3:
    case Dtype::F6_E3M2:
      break;
  }
  return std::nullopt;
}

std::optional<Dtype> format_dtype(at::ScalarType type) {
  for (int i = 0; i < formats::kNumDtypes; ++i) {
    if (torch_type(static_cast<Dtype>(i)) == type) return static_cast<Dtype>(i);
  }
  return std::nullopt;
}

void check_writable(const std::map<std::string, const LazyTensor*>& by_name, size_t num_tensors,
                    const std::map<std::string, std::string>& metadata) {
  TORCH_CHECK_VALUE(by_name.size() == num_tensors, "write_safetensors: a tensor's name is there twice");
  const auto check_text = [](const std::string& text) {
    TORCH_CHECK_VALUE(find_invalid_utf8(text) == std::string::npos,
                      "write_safetensors: not valid UTF-8: ", quote(text));
  };
  for (const auto& [name, tensor] : by_name) {
    check_text(name);
    TORCH_CHECK_VALUE(name != kMetadataName, "write_safetensors: no tensor can be named ", kMetadataName);
    TORCH_CHECK_VALUE(format_dtype(tensor->dtype).has_value(), "write_safetensors: ", name,
                      ": the format has no dtype for ", tensor->dtype);
  }
  for (const auto& [key, value] : metadata) {
    check_text(key);
    check_text(value);
  }
}

}  // namespace

at::ScalarType scalar_type(Dtype dtype, const std::string& file, const std::string& tensor) {
  const auto type = torch_type(dtype);
  if (!type) {
    throw data_error_in(file, formats::tensor_label(tensor),
                        "dtype " + std::string(formats::dtype_name(dtype)) + " is not supported");
  }
  return *type;
}

TensorFile::TensorFile(const std::string& path)
    : path_(path),
      file_(std::make_shared<const MappedFile>(path)),
      header_(formats::parse_safetensors_header(file_->bytes(), file_->bytes().size(), path)) {
  for (size_t i = 0; i < header_.tensors.size(); ++i) by_name_.emplace(header_.tensors[i].name, i);
}

const formats::TensorInfo* TensorFile::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &header_.tensors[found->second];
}

Tensor TensorFile::tensor(const std::string& name) const {
  const formats::TensorInfo* info = find(name);
  if (info == nullptr) throw data_error_in(path_, formats::tensor_label(name), "is missing");
  return tensor(*info);
}

Tensor TensorFile::tensor(const formats::TensorInfo& info) const {
  const auto options = at::TensorOptions().dtype(scalar_type(info.dtype, path_, info.name));
  if (info.begin == info.end) return at::empty(info.shape, options);
  const std::span<std::byte> bytes = file_->bytes().subspan(header_.data_offset + info.begin, info.num_bytes());
  // A bool of any other value is undefined behaviour in whatever reads it.
  if (info.dtype == Dtype::Bool &&
      std::any_of(bytes.begin(), bytes.end(), [](std::byte b) { return b > std::byte{1}; })) {
    throw data_error_in(path_, formats::tensor_label(info.name),
                        Diagnostic::expected("bytes 0 or 1 in BOOL", "others"));
  }
  const Tensor view = at::from_blob(
      bytes.data(), info.shape, [mapping = file_](void*) {}, options);
  const bool aligned = reinterpret_cast<uintptr_t>(bytes.data()) % static_cast<size_t>(view.element_size()) == 0;
  return aligned ? view : view.clone();
}

NamedTensors TensorFile::tensors() const {
  NamedTensors all;
  all.reserve(header_.tensors.size());
  for (const formats::TensorInfo& info : header_.tensors) all.emplace_back(info.name, tensor(info));
  return all;
}

Tensor ModelTensors::tensor(const formats::TensorLocation& location) {
  const TensorFile& file = files_.try_emplace(location.file, location.file).first->second;
  const formats::TensorInfo* info = file.find(location.info.name);
  if (info == nullptr || *info != location.info) {
    throw data_error_in(location.file, formats::tensor_label(location.info.name), "has changed since it was checked");
  }
  return file.tensor(*info);
}

void write_safetensors(const std::string& path, const std::vector<LazyTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::map<std::string, const LazyTensor*> by_name;
  for (const LazyTensor& tensor : tensors) by_name.emplace(tensor.name, &tensor);
  check_writable(by_name, tensors.size(), metadata);
  std::vector<formats::TensorInfo> infos;
  for (const auto& [name, tensor] : by_name) infos.push_back({name, *format_dtype(tensor->dtype), tensor->shape, 0, 0});
  AtomicFile file(path);
  file.write(formats::make_safetensors_header(infos, metadata));
  for (const formats::TensorInfo& info : infos) {
    const LazyTensor& lazy = *by_name.at(info.name);
    const Tensor made = lazy.make();
    TORCH_CHECK_VALUE(made.scalar_type() == lazy.dtype && made.sizes() == at::IntArrayRef(lazy.shape),
                      "write_safetensors: expected ", info.name, " as ", lazy.dtype, " ", at::IntArrayRef(lazy.shape),
                      ", got ", made.scalar_type(), " ", made.sizes());
    const Tensor tensor = made.detach().to(at::kCPU).contiguous().resolve_conj().resolve_neg();
    file.write(std::span(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()));
  }
  file.commit();
}

void write_safetensors(const std::string& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<LazyTensor> lazies;
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK_VALUE(tensor.defined() && tensor.has_storage() && !tensor.is_meta(), "write_safetensors: ", name,
                      " has no data");
    lazies.push_back(LazyTensor::of(name, tensor));
  }
  write_safetensors(path, lazies, metadata);
}

}  // namespace lathe::io
