#include "lathe/arch/checkpoint.h"

#include <algorithm>
#include <set>

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

constexpr std::string_view kPrefix = "bert.";
constexpr size_t kMaxMistakes = 40;

// What transformers' own checkpoints of the family hold beyond a classifier's parameters: buffers of old versions, and
// the heads of pre-training.
bool is_inert(const std::string& name) {
  return name == "embeddings.position_ids" || name.ends_with(".embeddings.position_ids") ||
         name.ends_with("rotary_emb.inv_freq") || name.ends_with(".masked_bias") || name.starts_with("cls.");
}

// The names that a parameter has had: without the prefix in files of the bare encoder, and LayerNorm's parameters after
// their Greek letters in files converted from TensorFlow.
std::vector<std::string> spellings(const std::string& parameter) {
  std::vector<std::string> names = {parameter};
  for (const auto& [today, then] :
       {std::pair("LayerNorm.weight", "LayerNorm.gamma"), {"LayerNorm.bias", "LayerNorm.beta"}}) {
    const std::string_view ending = today;
    if (parameter.ends_with(ending)) names.push_back(parameter.substr(0, parameter.size() - ending.size()) + then);
  }
  for (size_t i = 0, n = names.size(); i < n; ++i) {
    if (names[i].starts_with(kPrefix)) names.push_back(names[i].substr(kPrefix.size()));
  }
  return names;
}

const formats::TensorLocation* find_parameter(const formats::ModelDirectory& model, const std::string& parameter) {
  for (const std::string& name : spellings(parameter)) {
    if (const formats::TensorLocation* tensor = model.find(name)) return tensor;
  }
  return nullptr;
}

bool is_float(formats::Dtype dtype) {
  using formats::Dtype;
  return dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16 || dtype == Dtype::F64;
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

void check_tensor(const formats::TensorLocation& tensor, const ParameterSpec& parameter, bool head,
                  CheckpointMistakes& mistakes) {
  const formats::TensorInfo& info = tensor.info;
  if (info.shape != parameter.shape) {
    mistakes.add(tensor.file, info.name,
                 Diagnostic::expected("shape " + formats::shape_text(parameter.shape), formats::shape_text(info.shape)),
                 head ? "the checkpoint's head has another number of labels" : "");
  } else if (!is_float(info.dtype)) {
    const std::string got(formats::dtype_name(info.dtype));
    mistakes.add(tensor.file, info.name, Diagnostic::expected("F32, F16, BF16 or F64", got));
  }
}

}  // namespace

CheckpointMatch match_checkpoint(const formats::ModelDirectory& model, const Arch& arch, int64_t num_labels) {
  CheckpointMatch match;
  CheckpointMistakes mistakes;
  std::set<const formats::TensorLocation*> used;
  const std::vector<std::string> heads = head_modules(arch);
  const auto in_head = [&](const std::string& name) {
    return std::any_of(heads.begin(), heads.end(), [&](const auto& head) { return name.starts_with(head + "."); });
  };
  for (ParameterSpec& parameter : classifier_parameters(arch, num_labels)) {
    const formats::TensorLocation* tensor = find_parameter(model, parameter.name);
    if (tensor != nullptr) {
      used.insert(tensor);
      match.has_head = match.has_head || in_head(parameter.name);
      check_tensor(*tensor, parameter, in_head(parameter.name), mistakes);
    }
    match.items.push_back({std::move(parameter), tensor});
  }
  for (const CheckpointMatch::Item& item : match.items) {
    if (item.tensor == nullptr && (match.has_head || !in_head(item.parameter.name))) {
      mistakes.add(model.weights_path(), item.parameter.name, "is missing");
    }
  }
  for (const formats::TensorLocation& tensor : model.tensors()) {
    if (used.contains(&tensor) || is_inert(tensor.info.name)) continue;
    mistakes.add(tensor.file, tensor.info.name, "is not a tensor of this architecture", "nothing is silently ignored");
  }
  mistakes.throw_if_any();
  return match;
}

}  // namespace lathe::arch
