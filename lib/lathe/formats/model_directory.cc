#include "lathe/formats/model_directory.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/json.h"
#include "lathe/base/text.h"

namespace lathe::formats {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

// The user's hub cache, by the same variables as huggingface_hub.
fs::path hub_cache() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? fs::path() : fs::path(value);
  };
  if (const fs::path cache = variable("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const fs::path home = variable("HF_HOME"); !home.empty()) return home / "hub";
  if (const fs::path cache = variable("XDG_CACHE_HOME"); !cache.empty()) return cache / "huggingface/hub";
  return variable("HOME") / ".cache/huggingface/hub";
}

// A value of weight_map: one plain file name, so that an index cannot reach outside its directory.
bool is_plain_shard_name(const std::string& name) {
  return name.ends_with(".safetensors") && name.find_first_of(std::string("/\\\0", 3)) == std::string::npos && !name.starts_with('.');
}

void append_tensors(const std::string& file, std::vector<TensorLocation>& tensors) {
  for (TensorInfo& info : read_safetensors_header(file).tensors) tensors.push_back({std::move(info), file});
}

std::vector<TensorLocation> read_shards(const std::string& directory, const std::string& index_path) {
  const Json json = read_json_file(index_path);
  const JsonObject map = JsonObject(json, index_path).object("weight_map");
  std::map<std::string, std::set<std::string>> names_by_shard;
  for (const auto& [name, unused] : map.json().items()) {
    const std::string shard = map.string(name);
    if (!is_plain_shard_name(shard)) throw map.error(printable(name), Diagnostic::expected("a plain file name ending in .safetensors", quote(shard)));
    names_by_shard[shard].insert(name);
  }
  std::vector<TensorLocation> tensors;
  for (auto& [shard, expected] : names_by_shard) {
    const std::string file = directory + "/" + shard;
    if (!fs::exists(file)) throw data_error(file, "no such file", "a shard that " + std::string(kIndex) + " names is missing");
    const size_t first = tensors.size();
    append_tensors(file, tensors);
    for (size_t i = first; i < tensors.size(); ++i) {
      if (expected.erase(tensors[i].info.name) == 0) {
        throw data_error_in(file, printable(tensors[i].info.name), "is not placed here by " + std::string(kIndex));
      }
    }
    if (!expected.empty()) throw data_error_in(file, printable(*expected.begin()), "is missing, although " + std::string(kIndex) + " places it here");
  }
  return tensors;
}

}  // namespace

std::string resolve_model_path(const std::string& path) {
  if (!path.starts_with("hf:")) return path;
  const std::string name = path.substr(3);
  const size_t slash = name.find('/');
  const bool plain = slash != std::string::npos && slash > 0 && slash + 1 < name.size() && name.find('/', slash + 1) == std::string::npos &&
                     name.find("..") == std::string::npos;
  if (!plain) throw data_error(path, Diagnostic::expected("hf:org/name", quote(path)));
  const fs::path repository = hub_cache() / ("models--" + name.substr(0, slash) + "--" + name.substr(slash + 1));
  const fs::path reference = repository / "refs/main";
  if (!fs::exists(reference)) {
    throw data_error(path, "is not in the local Hugging Face cache (" + hub_cache().string() + ")", "Lathe downloads nothing: fetch it with huggingface-cli download " + name);
  }
  std::string revision = read_file(reference, 256);
  std::erase_if(revision, [](unsigned char c) { return std::isalnum(c) == 0; });
  return (repository / "snapshots" / revision).string();
}

ModelDirectory ModelDirectory::open(const std::string& path) {
  ModelDirectory model;
  model.path_ = resolve_model_path(path);
  if (!fs::is_directory(model.path_)) throw data_error(model.path_, "no such model directory");
  if (!fs::exists(model.config_path())) throw data_error(model.config_path(), "no such file", "a model directory holds config.json");
  const std::string single = model.path_ + "/" + kWeights, index = model.path_ + "/" + kIndex;
  if (fs::exists(single)) {
    model.weights_path_ = single;
    append_tensors(single, model.tensors_);
  } else if (fs::exists(index)) {
    model.weights_path_ = index;
    model.tensors_ = read_shards(model.path_, index);
  } else {
    for (const char* pickled : {"pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth"}) {
      const std::string file = model.path_ + "/" + pickled;
      if (fs::exists(file)) {
        throw data_error(file, "holds pickled weights, which can run code when read", "Lathe reads safetensors only; in Python: model.save_pretrained(DIR)");
      }
    }
    throw data_error(model.path_, Diagnostic::expected(std::string(kWeights) + " or " + kIndex, "neither"));
  }
  return model;
}

const TensorLocation* ModelDirectory::find(const std::string& name) const {
  const auto found = std::find_if(tensors_.begin(), tensors_.end(), [&](const TensorLocation& tensor) { return tensor.info.name == name; });
  return found == tensors_.end() ? nullptr : &*found;
}

}  // namespace lathe::formats
