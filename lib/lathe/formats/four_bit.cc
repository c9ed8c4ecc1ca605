#include "lathe/formats/four_bit.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/text.h"

namespace lathe::formats {
namespace {

constexpr std::string_view kQuantState = ".quant_state.";
constexpr std::string_view kTypePrefix = "bitsandbytes__";
constexpr std::array<std::string_view, 2> kQuantTypes = {"nf4", "fp4"};
constexpr int64_t kNestedBlocksize = 256;
constexpr int64_t kMaxSide = int64_t{1} << 31;
constexpr uint64_t kMaxStateBytes = uint64_t{1} << 16;
constexpr size_t kMaxBadWeights = 20;
constexpr std::array<std::pair<Dtype, std::string_view>, 3> kDtypes = {
    {{Dtype::F32, "float32"}, {Dtype::BF16, "bfloat16"}, {Dtype::F16, "float16"}}};

std::string_view dtype_word(Dtype dtype) {
  return std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& entry) { return entry.first == dtype; })->second;
}

int64_t num_blocks(int64_t count, int64_t blocksize) { return (count + blocksize - 1) / blocksize; }

int64_t num_elements(const TensorInfo& info) {
  return static_cast<int64_t>(info.num_bytes()) * 8 / dtype_bits(info.dtype);
}

FourBitState parse_state(const JsonObject& json, std::string_view suffix_type) {
  json.refuse_other_keys(
      {"quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset"});
  FourBitState state;
  state.quant_type = json.string("quant_type");
  if (state.quant_type != suffix_type)
    throw json.error("quant_type", Diagnostic::expected(quote(std::string(suffix_type)) + ", as the tensor's name says",
                                                        quote(state.quant_type)));
  state.blocksize = json.integer("blocksize", 1, kMaxSide);
  if (!is_four_bit_blocksize(state.blocksize))
    throw json.error("blocksize", Diagnostic::expected("32, 64, 128, ..., 4096", std::to_string(state.blocksize)));
  const std::string word = json.string("dtype");
  const auto dtype =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& entry) { return entry.second == word; });
  if (dtype == kDtypes.end())
    throw json.error("dtype", Diagnostic::expected("float32, bfloat16 or float16", quote(word)));
  state.dtype = dtype->first;
  const Json* shape = json.find("shape");
  if (shape == nullptr || !shape->is_array() || shape->size() != 2)
    throw json.error("shape", Diagnostic::expected("two sizes", shape == nullptr ? "none" : shape->dump()));
  for (const Json& size : *shape) state.shape.push_back(json.integer_of("shape", size, 1, kMaxSide));
  state.nested = json.find("nested_blocksize") != nullptr || json.find("nested_offset") != nullptr;
  if (state.nested) {
    if (const int64_t size = json.integer("nested_blocksize", 1, kMaxSide); size != kNestedBlocksize)
      throw json.error("nested_blocksize", Diagnostic::expected("256", std::to_string(size)));
    if (const std::string type = json.string("nested_dtype"); type != "float32")
      throw json.error("nested_dtype", Diagnostic::expected("float32", quote(type)));
    state.nested_offset = static_cast<float>(json.number("nested_offset"));
    if (!std::isfinite(state.nested_offset)) throw json.error("nested_offset", "is not a finite float32");
  }
  return state;
}

// The tensors of one weight, by what follows its name: "", ".absmax", ...
class Parts {
 public:
  Parts(std::string name, std::map<std::string, const TensorLocation*> parts)
      : name_(std::move(name)), parts_(std::move(parts)) {}

  FourBitWeight read(const MappedFile& file) {
    FourBitWeight weight;
    weight.state = read_state(file, weight.quant_state);
    const FourBitState& state = weight.state;
    const int64_t blocks = num_blocks(state.num_elements(), state.blocksize);
    weight.weight = take("", std::nullopt, (state.num_elements() + 1) / 2);
    weight.absmax = take(".absmax", state.nested ? Dtype::U8 : Dtype::F32, blocks);
    weight.quant_map = take(".quant_map", Dtype::F32, 16);
    if (state.nested) {
      weight.nested_absmax = take(".nested_absmax", Dtype::F32, num_blocks(blocks, kNestedBlocksize));
      weight.nested_quant_map = take(".nested_quant_map", Dtype::F32, 256);
    }
    if (parts_.empty()) return weight;
    const TensorLocation& rest = *parts_.begin()->second;
    throw data_error_in(rest.file, tensor_label(rest.info.name), "is no part of a four-bit weight like this");
  }

 private:
  FourBitState read_state(const MappedFile& file, TensorLocation& place) {
    const auto is_state = [](const auto& part) { return part.first.starts_with(kQuantState); };
    const auto found = std::find_if(parts_.begin(), parts_.end(), is_state);
    place = *found->second;
    last_file_ = place.file;
    const std::string suffix = found->first.substr(kQuantState.size());
    parts_.erase(found);
    const std::string label = tensor_label(place.info.name);
    const auto type = std::find_if(kQuantTypes.begin(), kQuantTypes.end(), [&](std::string_view known) {
      return suffix == std::string(kTypePrefix) + std::string(known);
    });
    if (type == kQuantTypes.end()) {
      throw data_error_in(place.file, label, "is an unknown kind of quantisation",
                          "known: bitsandbytes__nf4, bitsandbytes__fp4");
    }
    if (place.info.dtype != Dtype::U8 || place.info.num_bytes() > kMaxStateBytes)
      throw data_error_in(place.file, label, "expected at most 65536 bytes in U8");
    const auto bytes = file.bytes().subspan(place.data_offset + place.info.begin, place.info.num_bytes());
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const Json json = parse_json(text, place.file + ": " + label, {.max_depth = 3});
    return parse_state(JsonObject(json, place.file, label), *type);
  }

  // The part in `dtype` (any, as raw bytes, without one) of `count` elements.
  TensorLocation take(const std::string& suffix, std::optional<Dtype> dtype, int64_t count) {
    const auto found = parts_.find(suffix);
    if (found == parts_.end()) {
      throw data_error_in(file_of_any(), tensor_label(name_ + suffix), "is missing", "a weight in four bits needs it");
    }
    const TensorLocation place = *found->second;
    parts_.erase(found);
    const TensorInfo& info = place.info;
    const int64_t got = dtype ? num_elements(info) : static_cast<int64_t>(info.num_bytes());
    if ((dtype && info.dtype != *dtype) || got != count) {
      const std::string expected =
          dtype ? std::to_string(count) + " of " + std::string(dtype_name(*dtype)) : std::to_string(count) + " bytes";
      throw data_error_in(place.file, tensor_label(info.name),
                          Diagnostic::expected(expected + ", as quant_state's shape and blocksize say",
                                               std::string(dtype_name(info.dtype)) + " " + shape_text(info.shape)));
    }
    last_file_ = place.file;
    return place;
  }

  const std::string& file_of_any() const { return parts_.empty() ? last_file_ : parts_.begin()->second->file; }

  std::string name_, last_file_;
  std::map<std::string, const TensorLocation*> parts_;
};

// The weight that a tensor is a part of, if its name says so: P of P.absmax, P.quant_state....
std::string weight_of(const std::string& name) {
  if (const size_t at = name.find(kQuantState); at != std::string::npos) return name.substr(0, at);
  for (const std::string_view part : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
    if (name.ends_with(part)) return name.substr(0, name.size() - part.size());
  }
  return "";
}

}  // namespace

uint64_t FourBitWeight::num_bytes() const {
  uint64_t sum = 0;
  for (const TensorLocation* part : parts()) sum += part->info.num_bytes();
  return sum;
}

std::vector<const TensorLocation*> FourBitWeight::parts() const {
  std::vector<const TensorLocation*> all = {&weight, &absmax, &quant_map, &quant_state};
  if (nested_absmax) all.push_back(&*nested_absmax);
  if (nested_quant_map) all.push_back(&*nested_quant_map);
  return all;
}

bool is_four_bit_blocksize(int64_t blocksize) {
  return blocksize >= 32 && blocksize <= 4096 && std::has_single_bit(static_cast<uint64_t>(blocksize));
}

std::vector<FourBitWeight> find_four_bit_weights(const std::vector<TensorLocation>& tensors) {
  std::map<std::string, std::map<std::string, const TensorLocation*>> parts;
  std::map<std::string, const TensorLocation*> states;
  for (const TensorLocation& tensor : tensors) {
    const std::string& name = tensor.info.name;
    const std::string weight = weight_of(name);
    if (weight.empty()) continue;
    parts[weight][name.substr(weight.size())] = &tensor;
    if (name.find(kQuantState) != std::string::npos) states.emplace(weight, &tensor);
  }
  std::vector<FourBitWeight> weights;
  std::vector<Diagnostic> mistakes;
  std::unique_ptr<MappedFile> file;
  for (const TensorLocation& tensor : tensors) {
    if (const auto found = parts.find(tensor.info.name); found != parts.end()) found->second[""] = &tensor;
  }
  for (auto& [name, of_weight] : parts) {
    if (mistakes.size() >= kMaxBadWeights) break;
    const auto state = states.find(name);
    if (state == states.end()) {
      mistakes.push_back({of_weight.begin()->second->file, 0, 0, tensor_label(name + ".quant_state.bitsandbytes__nf4"),
                          "is missing", "a weight in four bits needs it"});
      continue;
    }
    if (!file || file->path() != state->second->file) file = std::make_unique<MappedFile>(state->second->file);
    try {
      weights.push_back(Parts(name, std::move(of_weight)).read(*file));
    } catch (const Error& error) {
      mistakes.push_back(error.diagnostics().front());
    }
  }
  if (!mistakes.empty()) throw Error(ErrorKind::Data, std::move(mistakes));
  return weights;
}

std::string quant_state_name(const std::string& weight, const FourBitState& state) {
  return weight + std::string(kQuantState) + std::string(kTypePrefix) + state.quant_type;
}

std::string quant_state_text(const FourBitState& state) {
  std::string text = R"({"quant_type": ")" + state.quant_type + R"(", "blocksize": )" +
                     std::to_string(state.blocksize) + R"(, "dtype": ")" + std::string(dtype_word(state.dtype)) +
                     R"(", "shape": )" + shape_text(state.shape);
  if (state.nested) {
    text += R"(, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": )" +
            Json(static_cast<double>(state.nested_offset)).dump();
  }
  return text + "}";
}

Json quantization_config(const FourBitState& state, const std::vector<std::string>& skip) {
  return {{"_load_in_4bit", true},
          {"_load_in_8bit", false},
          {"bnb_4bit_compute_dtype", dtype_word(state.dtype)},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_quant_type", state.quant_type},
          {"bnb_4bit_use_double_quant", state.nested},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_skip_modules", skip.empty() ? Json(nullptr) : Json(skip)},
          {"llm_int8_threshold", 6.0},
          {"load_in_4bit", true},
          {"load_in_8bit", false},
          {"quant_method", "bitsandbytes"}};
}

}  // namespace lathe::formats
