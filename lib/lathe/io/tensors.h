#pragma once

#include <ATen/core/TensorBody.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lathe/base/files.h"
#include "lathe/formats/model_directory.h"
#include "lathe/formats/safetensors.h"

namespace lathe::io {

using at::Tensor;
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// LibTorch's type for a dtype of the format. Throws Error{Data} naming file and tensor where LibTorch has none.
at::ScalarType scalar_type(formats::Dtype dtype, const std::string& file, const std::string& tensor);

/// A safetensors file, mapped. Tensors are views of the mapping and keep it alive: pages are read when first used, writes copy the
/// page and never reach the file. Data that is not aligned to its element is copied.
class TensorFile {
 public:
  /// Throws Error{Data} for whatever is wrong with the file.
  explicit TensorFile(const std::string& path);

  const formats::SafetensorsHeader& header() const { return header_; }
  Tensor tensor(const formats::TensorInfo& info) const;
  /// All of them, in the order of their data.
  NamedTensors tensors() const;

 private:
  std::string path_;
  std::shared_ptr<const MappedFile> file_;
  formats::SafetensorsHeader header_;
};

/// The tensors of a model directory, by location; each file is mapped once.
class ModelTensors {
 public:
  Tensor tensor(const formats::TensorLocation& location);

 private:
  std::map<std::string, TensorFile> files_;
};

/// Writes a safetensors file atomically: one tensor at a time, contiguous, from the CPU.
/// Throws Error{Resource} when the disk is full.
void write_safetensors(const std::string& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace lathe::io
