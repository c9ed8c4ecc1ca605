#pragma once

#include <string>
#include <vector>

#include "lathe/formats/safetensors.h"

namespace lathe::formats {

/// A tensor of a model directory and the file that holds it.
struct TensorLocation {
  TensorInfo info;
  std::string file;
};

/// A Hugging Face model directory: config.json and model.safetensors, or the shards that model.safetensors.index.json names.
/// Only headers are read.
class ModelDirectory {
 public:
  /// `path` is a directory, or hf:org/name for the user's local Hugging Face cache.
  /// Throws Error{Data}: no such directory, no config.json, pickled weights only, a missing shard, an index that lies.
  static ModelDirectory open(const std::string& path);

  const std::string& path() const { return path_; }
  std::string config_path() const { return path_ + "/config.json"; }
  std::string tokenizer_path() const { return path_ + "/tokenizer.json"; }
  /// The file that names the weights: model.safetensors or its index.
  const std::string& weights_path() const { return weights_path_; }
  /// In the order of the files' names and of the data in them.
  const std::vector<TensorLocation>& tensors() const { return tensors_; }
  const TensorLocation* find(const std::string& name) const;

 private:
  std::string path_;
  std::string weights_path_;
  std::vector<TensorLocation> tensors_;
};

/// The directory that `path` means: hf:org/name resolved in the local cache, anything else unchanged.
std::string resolve_model_path(const std::string& path);

}  // namespace lathe::formats
