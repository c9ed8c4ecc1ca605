#include "lathe/arch/checkpoint.h"

#include <algorithm>
#include <set>

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
  const auto* bert = std::get_if<BertArch>(&arch);
  return bert != nullptr && is_inert(*bert, tensor);
}

const formats::TensorLocation* find_parameter(const formats::ModelDirectory& model, const Arch& arch,
                                              const std::string& parameter) {
  for (const std::string& name : spellings_in(arch, parameter)) {
    if (const formats::TensorLocation* tensor = model.find(name)) return tensor;
  }
  return nullptr;
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

// Whether the checkpoint has a head that differs from this one in nothing but its number of labels.
bool has_other_labels(const formats::ModelDirectory& model, const Arch& arch, int64_t num_labels) {
  const formats::TensorLocation* weight = model.find(head_module(arch) + ".weight");
  if (weight == nullptr || weight->info.shape.size() != 2 || weight->info.shape[0] == num_labels) return false;
  const formats::TensorLocation* bias = model.find(head_module(arch) + ".bias");
  return bias != nullptr && bias->info.shape == std::vector<int64_t>{weight->info.shape[0]} &&
         weight->info.shape[1] == classifier_linears(arch, num_labels).back().in_features;
}

}  // namespace

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
  std::set<const formats::TensorLocation*> used;
  const std::vector<std::string> heads = head_modules(arch);
  const auto in_head = [&](const std::string& name) {
    return std::any_of(heads.begin(), heads.end(), [&](const auto& head) { return name.starts_with(head + "."); });
  };
  const bool other_head = sees_images(arch) && has_other_labels(model, arch, num_labels);
  for (ParameterSpec& parameter : classifier_parameters(arch, num_labels)) {
    const formats::TensorLocation* tensor = find_parameter(model, arch, parameter.name);
    if (tensor != nullptr) used.insert(tensor);
    if (other_head && in_head(parameter.name)) tensor = nullptr;
    if (tensor != nullptr) {
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
    if (used.contains(&tensor) || is_inert_in(arch, tensor.info.name)) continue;
    mistakes.add(tensor.file, tensor.info.name, "is not a tensor of this architecture", "nothing is silently ignored");
  }
  mistakes.throw_if_any();
  return match;
}

}  // namespace lathe::arch
