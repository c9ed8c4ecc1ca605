#include "lathe/arch/checkpoint.h"

#include <algorithm>
#include <set>

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

constexpr const char* kPrefix = "bert.";

bool is_inert(const std::string& name) {
  return name.ends_with("position_ids") || name.ends_with("rotary_emb.inv_freq") || name.ends_with(".masked_bias") || name.starts_with("cls.");
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::vector<std::string> sizes;
  for (const int64_t size : shape) sizes.push_back(std::to_string(size));
  return "[" + join(sizes, ", ") + "]";
}

bool is_head_parameter(const Arch& arch, const std::string& name) {
  const auto heads = head_modules(arch);
  return std::any_of(heads.begin(), heads.end(), [&](const std::string& head) { return name.starts_with(head + "."); });
}

bool is_float(formats::Dtype dtype) {
  using formats::Dtype;
  return dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16 || dtype == Dtype::F64;
}

}  // namespace

CheckpointMatch match_checkpoint(const formats::ModelDirectory& model, const Arch& arch, int64_t num_labels) {
  CheckpointMatch match;
  std::vector<Diagnostic> mistakes;
  std::set<std::string> used;
  for (ParameterSpec& parameter : classifier_parameters(arch, num_labels)) {
    const formats::TensorLocation* tensor = model.find(parameter.name);
    if (tensor == nullptr && parameter.name.starts_with(kPrefix)) tensor = model.find(parameter.name.substr(std::string(kPrefix).size()));
    const bool head = is_head_parameter(arch, parameter.name);
    if (tensor == nullptr && !head) {
      mistakes.push_back({model.weights_path(), 0, 0, parameter.name, "is missing", ""});
    } else if (tensor != nullptr) {
      used.insert(tensor->info.name);
      match.has_head = match.has_head || head;
      if (tensor->info.shape != parameter.shape) {
        mistakes.push_back({tensor->file, 0, 0, printable(tensor->info.name),
                            Diagnostic::expected("shape " + shape_text(parameter.shape), shape_text(tensor->info.shape)),
                            head ? "the checkpoint's head has another number of labels than data.labels" : ""});
      } else if (!is_float(tensor->info.dtype)) {
        mistakes.push_back({tensor->file, 0, 0, printable(tensor->info.name),
                            Diagnostic::expected("F32, F16, BF16 or F64", std::string(formats::dtype_name(tensor->info.dtype))), ""});
      }
    }
    match.items.push_back({std::move(parameter), tensor});
  }
  for (const formats::TensorLocation& tensor : model.tensors()) {
    if (used.contains(tensor.info.name) || is_inert(tensor.info.name)) continue;
    mistakes.push_back({tensor.file, 0, 0, printable(tensor.info.name), "is not a tensor of this architecture", "nothing is silently ignored"});
  }
  if (!mistakes.empty()) throw Error(ErrorKind::Data, std::move(mistakes));
  return match;
}

}  // namespace lathe::arch
