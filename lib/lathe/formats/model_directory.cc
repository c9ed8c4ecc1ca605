#include "lathe/formats/model_directory.h"

#include <xxhash.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
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
constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;
constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;
constexpr size_t kMaxMistakes = 20;

fs::path hub_cache() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? fs::path() : fs::path(value);
  };
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (fs::path cache = variable(name); !cache.empty()) return cache;
  }
  if (const fs::path home = variable("HF_HOME"); !home.empty()) return home / "hub";
  if (const fs::path cache = variable("XDG_CACHE_HOME"); !cache.empty()) return cache / "huggingface/hub";
  return variable("HOME") / ".cache/huggingface/hub";
}

// One half of org/name: what the hub allows, so that a name cannot leave the cache.
bool is_hub_word(const std::string& word) {
  const auto allowed = [](unsigned char c) { return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.'; };
  return !word.empty() && std::all_of(word.begin(), word.end(), allowed) && word.find("..") == std::string::npos &&
         word.find("--") == std::string::npos && word.front() != '.' && word.front() != '-';
}

bool path_exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// Why a path is not to be found: `absent`, or what the system says instead.
std::string reason_of_absence(const fs::path& path, const std::string& absent) {
  std::error_code error;
  (void)fs::status(path, error);
  const bool hidden = error == std::errc::permission_denied || error == std::errc::too_many_symbolic_link_levels;
  return hidden ? "cannot be opened: " + error.message() : absent;
}

// One plain file name, so that an index cannot reach outside its directory.
bool is_plain_shard_name(const std::string& name) {
  return name.ends_with(".safetensors") && name.find_first_of(std::string("/\\\0", 3)) == std::string::npos &&
         !name.starts_with('.');
}

void append_tensors(const std::string& file, std::vector<TensorLocation>& tensors) {
  SafetensorsHeader header = read_safetensors_header(file);
  for (TensorInfo& info : header.tensors) tensors.push_back({std::move(info), file, header.data_offset});
}

std::map<std::string, std::set<std::string>> read_index(const std::string& path) {
  const Json json = read_json_file(path, kMaxIndexBytes);
  const JsonObject map = JsonObject(json, path).object("weight_map");
  std::map<std::string, std::set<std::string>> names_by_shard;
  for (const auto& [name, value] : map.json().items()) {
    if (!value.is_string() || !is_plain_shard_name(value.get_ref<const std::string&>())) {
      throw map.error(tensor_label(name),
                      Diagnostic::expected("a plain file name ending in .safetensors", describe(value)));
    }
    names_by_shard[value.get<std::string>()].insert(name);
  }
  if (names_by_shard.empty()) throw data_error_in(path, "weight_map", "names no tensor");
  return names_by_shard;
}

std::vector<TensorLocation> read_shards(const std::string& directory, const std::string& index_path) {
  std::vector<TensorLocation> tensors;
  std::vector<Diagnostic> mistakes;
  const auto note = [&](const std::string& file, const std::string& name, const std::string& problem) {
    if (mistakes.size() < kMaxMistakes) mistakes.push_back({file, 0, 0, tensor_label(name), problem, ""});
  };
  for (auto& [shard, expected] : read_index(index_path)) {
    const std::string file = (fs::path(directory) / shard).string();
    if (!path_exists(file)) throw data_error(file, "no such file", std::string(kIndex) + " names this shard");
    const size_t first = tensors.size();
    append_tensors(file, tensors);
    std::set<std::string> missing = expected;
    for (size_t i = first; i < tensors.size(); ++i) {
      const std::string& name = tensors[i].info.name;
      if (missing.erase(name) == 0) note(file, name, std::string("is not placed here by ") + kIndex);
    }
    for (const std::string& name : missing) {
      note(file, name, std::string("is missing, although ") + kIndex + " places it here");
    }
  }
  if (!mistakes.empty()) throw Error(ErrorKind::Data, std::move(mistakes));
  return tensors;
}

[[noreturn]] void throw_no_weights(const std::string& directory) {
  for (const char* name : {"pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth"}) {
    const std::string file = directory + "/" + name;
    if (!path_exists(file)) continue;
    throw data_error(file, "holds pickled weights, which can run code when read",
                     "Lathe reads safetensors only; in Python: transformers.AutoModel.from_pretrained(DIR)"
                     ".save_pretrained(NEW_DIR)");
  }
  throw data_error(directory, Diagnostic::expected(std::string(kWeights) + " or " + kIndex, "neither"));
}

// config.json's quantization_config must name what the tensors are: bitsandbytes' four bits. The details are in each
// weight's quant_state, which alone counts.
void check_quantization_config(const std::string& path, bool any_four_bit) {
  const Json json = read_json_file(path, kMaxConfigBytes);
  const JsonObject config(json, path);
  if (config.find("quantization_config") == nullptr) return;
  const JsonObject section = config.object("quantization_config");
  const std::string method = section.string("quant_method", "bitsandbytes");
  if (method != "bitsandbytes")
    throw section.error("quant_method", Diagnostic::expected("bitsandbytes", quote(method)),
                        "a dense checkpoint is read as well");
  if (section.boolean("load_in_8bit", false) || !section.boolean("load_in_4bit", false))
    throw section.error("load_in_4bit", "expected true: weights in eight bits are not supported");
  if (!any_four_bit) throw section.error("load_in_4bit", "is true, but no weight is stored in four bits");
}

}  // namespace

std::string resolve_model_path(const std::string& path) {
  if (!path.starts_with("hf:")) return path;
  const std::string name = path.substr(3);
  const size_t slash = std::min(name.find('/'), name.size());
  const std::string organisation = name.substr(0, slash);
  const std::string model = name.substr(std::min(slash + 1, name.size()));
  if (!is_hub_word(organisation) || !is_hub_word(model)) {
    throw data_error(printable(path), Diagnostic::expected("hf:org/name", quote(name)));
  }
  const std::string fetch = "Lathe downloads nothing; fetch it with: hf download " + name;
  const fs::path repository = hub_cache() / ("models--" + organisation + "--" + model);
  const fs::path reference = repository / "refs/main";
  if (!path_exists(reference)) {
    throw data_error(path, "is not in the local Hugging Face cache " + hub_cache().string(), fetch);
  }
  std::string revision = read_file(reference, 256);
  while (!revision.empty() && std::isspace(static_cast<unsigned char>(revision.back())) != 0) revision.pop_back();
  if (revision.empty() || revision.find_first_not_of("0123456789abcdef") != std::string::npos) {
    throw data_error(reference.string(), Diagnostic::expected("a commit", quote(revision)));
  }
  const fs::path snapshot = repository / "snapshots" / revision;
  if (!path_exists(snapshot)) throw data_error(snapshot.string(), "no such directory", fetch);
  return snapshot.string();
}

void copy_companions(const std::string& from, const fs::path& to) {
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
        "tokenizer.model", "added_tokens.json", "chat_template.jinja", "generation_config.json"}) {
    const fs::path source = fs::path(from) / name;
    if (path_exists(source)) fs::copy_file(source, to / name, fs::copy_options::overwrite_existing);
  }
}

ModelDirectory ModelDirectory::open_without_weights(const std::string& path) {
  ModelDirectory model;
  model.path_ = resolve_model_path(path);
  std::error_code ignored;
  if (!path_exists(model.path_))
    throw data_error(printable(model.path_), reason_of_absence(model.path_, "no such directory"));
  if (!fs::is_directory(model.path_, ignored)) {
    throw data_error(model.path_, Diagnostic::expected("a model directory", "a file"));
  }
  if (!path_exists(model.config_path())) {
    throw data_error(model.config_path(), reason_of_absence(model.config_path(), "no such file"),
                     "a model directory holds config.json");
  }
  return model;
}

ModelDirectory ModelDirectory::open(const std::string& path) {
  ModelDirectory model = open_without_weights(path);
  const std::string single = model.path_ + "/" + kWeights;
  const std::string index = model.path_ + "/" + kIndex;
  if (path_exists(single)) {
    model.weights_path_ = single;
    append_tensors(single, model.tensors_);
  } else if (path_exists(index)) {
    model.weights_path_ = index;
    model.tensors_ = read_shards(model.path_, index);
  } else {
    throw_no_weights(model.path_);
  }
  for (size_t i = 0; i < model.tensors_.size(); ++i) model.by_name_.emplace(model.tensors_[i].info.name, i);
  model.four_bit_ = find_four_bit_weights(model.tensors_);
  for (size_t i = 0; i < model.four_bit_.size(); ++i)
    model.four_bit_by_name_.emplace(model.four_bit_[i].weight.info.name, i);
  check_quantization_config(model.config_path(), !model.four_bit_.empty());
  return model;
}

ModelDirectory ModelDirectory::open_as_it_is(const std::string& path) {
  const std::string directory = resolve_model_path(path);
  const bool has_weights = path_exists(directory + "/" + kWeights) || path_exists(directory + "/" + kIndex);
  return has_weights ? open(path) : open_without_weights(path);
}

const TensorLocation* ModelDirectory::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

const FourBitWeight* ModelDirectory::find_four_bit(const std::string& name) const {
  const auto found = four_bit_by_name_.find(name);
  return found == four_bit_by_name_.end() ? nullptr : &four_bit_[found->second];
}

uint64_t ModelDirectory::fingerprint() const {
  constexpr size_t kSample = 4096;
  uint64_t hash = 0;
  const auto add = [&hash](const void* data, size_t bytes) { hash = XXH3_64bits_withSeed(data, bytes, hash); };
  for (const std::string& file : {config_path(), tokenizer_path()}) {
    if (path_.empty() || !path_exists(file)) continue;
    const MappedFile mapped(file);
    add(mapped.bytes().data(), mapped.bytes().size());
  }
  std::optional<MappedFile> shard;
  for (const TensorLocation& tensor : tensors_) {
    if (!shard || shard->path() != tensor.file) shard.emplace(tensor.file);
    add(tensor.info.name.data(), tensor.info.name.size());
    add(tensor.info.shape.data(), tensor.info.shape.size() * sizeof(int64_t));
    const auto bytes = shard->bytes().subspan(tensor.data_offset + tensor.info.begin, tensor.info.num_bytes());
    add(bytes.data(), std::min(kSample, bytes.size()));
    add(bytes.last(std::min(kSample, bytes.size())).data(), std::min(kSample, bytes.size()));
  }
  return hash;
}

std::vector<int64_t> ModelDirectory::shape_of(const std::string& name) const {
  if (const FourBitWeight* weight = find_four_bit(name)) return weight->state.shape;
  const TensorLocation* tensor = find(name);
  return tensor == nullptr ? std::vector<int64_t>() : tensor->info.shape;
}

}  // namespace lathe::formats
