#pragma once

#include <ATen/core/TensorBody.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "lathe/base/files.h"
#include "lathe/formats/model_directory.h"
#include "lathe/formats/safetensors.h"

namespace lathe::io {

using at::Tensor;
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// LibTorch's type for a dtype of the format. Throws Error{Data} naming file and tensor where LibTorch has none (the
/// packed F4 and F6).
at::ScalarType scalar_type(formats::Dtype dtype, const std::string& file, const std::string& tensor);

/// A safetensors file, mapped. Tensors are views of the mapping and keep it alive: pages are read when first used,
/// writes copy the page and never reach the file. Data that is not aligned to its element is copied.
/// Requires that nobody truncates the file while it is mapped; replacing it by renaming is safe.
class TensorFile {
 public:
  /// Throws Error{Data} for whatever is wrong with the file.
  explicit TensorFile(const std::string& path);

  const formats::SafetensorsHeader& header() const { return header_; }
  /// Null when there is none of that name.
  const formats::TensorInfo* find(const std::string& name) const;

  /// Throws Error{Data} when the file has no such tensor, LibTorch lacks its dtype, or a BOOL byte is not 0 or 1.
  Tensor tensor(const std::string& name) const;
  Tensor tensor(const formats::TensorInfo& info) const;
  /// All of them, in the order of their data.
  NamedTensors tensors() const;

 private:
  std::string path_;
  std::shared_ptr<const MappedFile> file_;
  formats::SafetensorsHeader header_;
  std::unordered_map<std::string, size_t> by_name_;
};

/// The tensors of a model directory, by location; each file is mapped once.
class ModelTensors {
 public:
  /// Throws Error{Data}, also when the file is not the one that the location was read from.
  Tensor tensor(const formats::TensorLocation& location);

 private:
  std::map<std::string, TensorFile> files_;
};

/// Writes a safetensors file atomically, one tensor at a time: any device, strides or gradient, on disk contiguous.
/// Tensors that share memory are each written out. The bytes are those of the Python package.
/// Throws Error{Resource} when the disk is full; c10::ValueError, before anything is written, for a name twice, the
/// name __metadata__, text that is not UTF-8, a tensor without storage or of a type that the format lacks.
void write_safetensors(const std::string& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

/// A tensor that is made when it is written.
struct LazyTensor {
  /// One that is there already.
  static LazyTensor of(std::string name, const Tensor& tensor) {
    return {std::move(name), tensor.scalar_type(), tensor.sizes().vec(), [tensor] { return tensor; }};
  }

  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  std::function<Tensor()> make;
};

/// The same, but only one of the tensors exists at a time.
void write_safetensors(const std::string& path, const std::vector<LazyTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace lathe::io
