#include "lathe/arch/checkpoint.h"

#include <algorithm>
#include <set>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

constexpr size_t kMaxMistakes = 40;

std::vector<std::string> spellings_in(const Arch& arch, const std::string& parameter) {
  const auto* bert = std::get_if<BertArch>(&arch);
  return bert != nullptr ? spellings(*bert, parameter) : std::vector<std::string>{parameter};
}

bool is_inert_in(const Arch& arch, const std::string& tensor) {
  if (const auto* decoder = std::get_if<DecoderArch>(&arch))
    return tensor.ends_with(".rotary_emb.inv_freq") || (decoder->tied && tensor == "lm_head.weight");
  const auto* bert = std::get_if<BertArch>(&arch);
  return bert != nullptr && is_inert(*bert, tensor);
}

// What a parameter is filled from; adds the names of its tensors to `used`.
CheckpointMatch::Item find_item(const formats::ModelDirectory& model, const Arch& arch, ParameterSpec parameter,
                                std::set<std::string>& used) {
  CheckpointMatch::Item item{std::move(parameter), nullptr};
  for (const std::string& name : spellings_in(arch, item.parameter.name)) {
    item.tensor = model.find(name);
    if (item.tensor == nullptr) continue;
    used.insert(name);
    item.four_bit = model.find_four_bit(name);
    if (item.four_bit == nullptr) break;
    for (const formats::TensorLocation* part : item.four_bit->parts()) used.insert(part->info.name);
    break;
  }
  return item;
}

class CheckpointMistakes {
 public:
  void add(const std::string& file, const std::string& name, const std::string& problem, const std::string& hint = "") {
    ++count_;
    if (list_.size() < kMaxMistakes) list_.push_back({file, 0, 0, formats::tensor_label(name), problem, hint});
  }
  void throw_if_any() {
    if (list_.empty()) return;
    if (count_ > list_.size()) list_.back().hint = "and " + std::to_string(count_ - list_.size()) + " more";
    throw Error(ErrorKind::Data, std::move(list_));
  }

 private:
  std::vector<Diagnostic> list_;
  size_t count_ = 0;
};

void check_tensor(const CheckpointMatch::Item& item, bool head, bool linear, CheckpointMistakes& mistakes) {
  const formats::TensorLocation& tensor = *item.tensor;
  const formats::TensorInfo& info = tensor.info;
  const std::vector<int64_t>& shape = item.four_bit != nullptr ? item.four_bit->state.shape : info.shape;
  if (shape != item.parameter.shape) {
    mistakes.add(tensor.file, info.name,
                 Diagnostic::expected("shape " + formats::shape_text(item.parameter.shape), formats::shape_text(shape)),
                 head ? "the checkpoint's head has another number of labels" : "");
  } else if (item.four_bit != nullptr) {
    if (!linear) mistakes.add(tensor.file, info.name, "is in four bits, but no linear layer's weight");
  } else if (!is_float(info.dtype)) {
    const std::string got(formats::dtype_name(info.dtype));
    mistakes.add(tensor.file, info.name, Diagnostic::expected("F32, F16, BF16 or F64", got));
  }
}

// Whether the checkpoint has a head that differs from this one in nothing but its number of labels.
bool has_other_labels(const formats::ModelDirectory& model, const Arch& arch, int64_t num_labels) {
  const std::vector<int64_t> shape = model.shape_of(head_module(arch) + ".weight");
  if (shape.size() != 2 || shape[0] == num_labels) return false;
  const formats::TensorLocation* bias = model.find(head_module(arch) + ".bias");
  return bias != nullptr && bias->info.shape == std::vector<int64_t>{shape[0]} &&
         shape[1] == classifier_linears(arch, num_labels).back().in_features;
}

}  // namespace

bool has_four_bit(const CheckpointMatch& match) {
  return std::any_of(match.items.begin(), match.items.end(), [](const auto& item) { return item.four_bit != nullptr; });
}

CheckpointMatch match_nothing(const Arch& arch, int64_t num_labels) {
  CheckpointMatch match;
  for (ParameterSpec& parameter : classifier_parameters(arch, num_labels))
    match.items.push_back({std::move(parameter), nullptr});
  return match;
}

bool is_float(formats::Dtype dtype) {
  using formats::Dtype;
  return dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16 || dtype == Dtype::F64;
}

CheckpointMatch match_checkpoint(const formats::ModelDirectory& model, const Arch& arch, int64_t num_labels) {
  CheckpointMatch match;
  CheckpointMistakes mistakes;
  std::set<std::string> used;
  const std::vector<std::string> heads = head_modules(arch);
  const auto in_head = [&](const std::string& name) {
    return std::any_of(heads.begin(), heads.end(), [&](const auto& head) { return name.starts_with(head + "."); });
  };
  std::set<std::string> linears;
  for (const LinearSpec& linear : classifier_linears(arch, num_labels)) linears.insert(linear.path + ".weight");
  const bool other_head = sees_images(arch) && has_other_labels(model, arch, num_labels);
  for (ParameterSpec& parameter : classifier_parameters(arch, num_labels)) {
    CheckpointMatch::Item item = find_item(model, arch, std::move(parameter), used);
    const bool head = in_head(item.parameter.name);
    if (other_head && head) item.tensor = nullptr;
    if (item.tensor == nullptr) item.four_bit = nullptr;
    if (item.tensor != nullptr) {
      match.has_head = match.has_head || head;
      check_tensor(item, head, linears.contains(item.parameter.name), mistakes);
    }
    match.items.push_back(std::move(item));
  }
  for (const CheckpointMatch::Item& item : match.items) {
    if (item.tensor == nullptr && (match.has_head || !in_head(item.parameter.name))) {
      mistakes.add(model.weights_path(), item.parameter.name, "is missing");
    }
  }
  for (const formats::TensorLocation& tensor : model.tensors()) {
    if (used.contains(tensor.info.name) || is_inert_in(arch, tensor.info.name)) continue;
    mistakes.add(tensor.file, tensor.info.name, "is not a tensor of this architecture", "nothing is silently ignored");
  }
  mistakes.throw_if_any();
  return match;
}

}  // namespace lathe::arch
