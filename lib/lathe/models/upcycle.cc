#include "lathe/models/upcycle.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <string>
#include <utility>

#include "lathe/arch/arch.h"
#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/io/tensors.h"
#include "lathe/models/load.h"

namespace lathe::models {
namespace {

// How the MLP's tensors of a layer are called, and those of its experts. BERT's attention has an `output.dense` too.
struct Renaming {
  std::string_view dense, experts;
};
constexpr std::array<Renaming, 8> kRenamings = {{{".intermediate.dense.weight", ".moe.experts.up_proj"},
                                                 {".intermediate.dense.bias", ".moe.experts.up_proj_bias"},
                                                 {".output.dense.weight", ".moe.experts.down_proj"},
                                                 {".output.dense.bias", ".moe.experts.down_proj_bias"},
                                                 {".mlp_channels.fc1.weight", ".moe.experts.up_proj"},
                                                 {".mlp_channels.fc1.bias", ".moe.experts.up_proj_bias"},
                                                 {".mlp_channels.fc2.weight", ".moe.experts.down_proj"},
                                                 {".mlp_channels.fc2.bias", ".moe.experts.down_proj_bias"}}};

const Renaming* renaming_of(const std::string& name) {
  if (name.find(".attention.") != std::string::npos) return nullptr;
  for (const Renaming& renaming : kRenamings) {
    if (name.ends_with(renaming.dense)) return &renaming;
  }
  return nullptr;
}

void refuse_what_has_no_dense_mlps(const formats::ModelDirectory& model, const arch::ModelConfig& config) {
  if (arch::mlp_experts(config.arch)) throw data_error(model.config_path(), "has experts already");
  if (!model.four_bit_weights().empty())
    throw data_error(model.weights_path(), "has weights in four bits", "start from the dense model");
}

}  // namespace

int64_t upcycle(const formats::ModelDirectory& model, const arch::MlpExperts& experts, uint64_t seed,
                const std::filesystem::path& out) {
  const arch::ModelConfig config = arch::read_model_config(model.config_path());
  refuse_what_has_no_dense_mlps(model, config);
  io::ModelTensors files;
  io::NamedTensors tensors;
  int64_t num_mlps = 0;
  for (const formats::TensorLocation& location : model.tensors()) {
    const std::string& name = location.info.name;
    const at::Tensor tensor = files.tensor(location);
    const Renaming* renaming = renaming_of(name);
    if (renaming == nullptr) {
      tensors.emplace_back(name, tensor);
      continue;
    }
    const std::string layer = name.substr(0, name.size() - renaming->dense.size());
    std::vector<int64_t> shape = tensor.sizes().vec();
    shape.insert(shape.begin(), experts.num_experts);
    tensors.emplace_back(layer + std::string(renaming->experts), tensor.unsqueeze(0).expand(shape));
    if (!renaming->experts.ends_with("up_proj")) continue;
    ++num_mlps;
    arch::ExpertsShape drawn{.in_features = shape[2], .hidden_features = shape[1]};
    drawn.router =
        drawn.up = {arch::Initial::Kind::Normal, 0.02};  // a shared expert starts at zero by its second matrix
    for (const arch::ParameterSpec& parameter : arch::mlp_expert_parameters(layer + ".moe", experts, drawn)) {
      if (parameter.name.find(".moe.experts.") != std::string::npos) continue;
      at::Tensor fresh = at::empty(parameter.shape);
      initialise(fresh, parameter.initial, seed, parameter.name);
      tensors.emplace_back(parameter.name, fresh);
    }
  }
  io::write_safetensors((out / "model.safetensors").string(), tensors);
  Json json = config.json;
  json["moe"] = arch::to_json(experts);
  write_file_atomically(out / "config.json", json.dump(2) + "\n");
  formats::copy_companions(model.path(), out);
  return num_mlps;
}

}  // namespace lathe::models
