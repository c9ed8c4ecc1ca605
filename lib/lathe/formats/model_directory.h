#pragma once

#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "lathe/formats/four_bit.h"
#include "lathe/formats/safetensors.h"

namespace lathe::formats {

/// A Hugging Face model directory: config.json and model.safetensors, or the shards that model.safetensors.index.json
/// names; weights may be in four bits, as bitsandbytes stores them. Only headers are read.
class ModelDirectory {
 public:
  /// `path` is a directory, or hf:org/name for the user's local Hugging Face cache.
  /// Throws Error{Data}: no such directory, no config.json, pickled weights only, a missing shard, an index that names
  /// anything but plain .safetensors files in the directory, tensors that the index and its shards do not agree on,
  /// four-bit weights that are not whole (see find_four_bit_weights()), a quantization_config of another kind.
  static ModelDirectory open(const std::string& path);
  /// The same for the configuration and the tokenizer alone: weights may be absent and are not looked at.
  static ModelDirectory open_without_weights(const std::string& path);
  /// The first where there are weights in safetensors, else the second.
  static ModelDirectory open_as_it_is(const std::string& path);

  const std::string& path() const { return path_; }
  std::string config_path() const { return path_ + "/config.json"; }
  std::string tokenizer_path() const { return path_ + "/tokenizer.json"; }
  /// The file that names the weights: model.safetensors or its index; empty without weights.
  const std::string& weights_path() const { return weights_path_; }
  /// In the order of the files' names and of the data in them; no name twice.
  const std::vector<TensorLocation>& tensors() const { return tensors_; }
  /// Null when there is none of that name.
  const TensorLocation* find(const std::string& name) const;
  const std::vector<FourBitWeight>& four_bit_weights() const { return four_bit_; }
  /// Null when no weight of that name is in four bits.
  const FourBitWeight* find_four_bit(const std::string& name) const;
  /// The shape of a weight, in four bits or not; empty when there is none of that name.
  std::vector<int64_t> shape_of(const std::string& name) const;

  /// A hash of config.json, tokenizer.json, and of each tensor's name, type, shape, and first and last 4 KiB: what
  /// tells another model, or one that was trained on, without reading it all.
  uint64_t fingerprint() const;

 private:
  std::string path_;
  std::string weights_path_;
  std::vector<TensorLocation> tensors_;
  std::unordered_map<std::string, size_t> by_name_;
  std::vector<FourBitWeight> four_bit_;
  std::unordered_map<std::string, size_t> four_bit_by_name_;
};

/// Copies what a model directory holds beside weights and config.json: the files of the tokenizer and of generation.
void copy_companions(const std::string& from, const std::filesystem::path& to);

/// The directory that `path` means: hf:org/name resolved in the local cache (HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE,
/// HF_HOME, XDG_CACHE_HOME, ~/.cache, as the Python package looks), anything else unchanged. Nothing is downloaded.
/// Throws Error{Data} when the cache does not hold it.
std::string resolve_model_path(const std::string& path);

}  // namespace lathe::formats
