#include "lathe/models/moe_block.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <map>
#include <utility>

namespace lathe::models {
namespace {

using at::Tensor;

// Where the tensor of a name on disk stands in a block: a parameter, or a part of one.
Tensor place_of(const nn::MoELayerImpl& block, const arch::MoEArch& arch, const std::string& name) {
  const auto& bank = dynamic_cast<const nn::ExpertBankImpl&>(*block.experts);
  if (name == "gate.e_score_correction_bias") return block.router->selection_bias();
  constexpr std::string_view kExperts = "experts.";
  if (name.starts_with(kExperts) && name != "experts.gate_up_proj" && name != "experts.down_proj") {
    const size_t dot = name.find('.', kExperts.size());
    const int64_t expert = std::stoll(name.substr(kExperts.size(), dot - kExperts.size()));
    const std::string matrix = name.substr(dot + 1, name.rfind('.') - dot - 1);
    if (matrix == arch.expert_down) return bank.down_weight.detach().select(0, expert);
    const int64_t first = matrix == arch.expert_gate ? 0 : arch.expert_size;
    return bank.up_weight.detach().select(0, expert).narrow(0, first, arch.expert_size);
  }
  return block.named_parameters()[name].detach();
}

}  // namespace

nn::MoELayer build_moe_block(const arch::MoEArch& arch, const nn::MoELayerOptions& options) {
  using Score = nn::TopKRouterOptions::Score;
  nn::TopKRouterOptions routing;
  routing.score(arch.sigmoid ? Score::Sigmoid : Score::Softmax)
      .renormalise(arch.renormalise)
      .selection_bias(arch.sigmoid)
      .num_groups(arch.num_groups)
      .top_groups(arch.top_groups)
      .scale(arch.scale);
  const auto experts = nn::ExpertBankOptions(arch.num_experts, arch.hidden_size, arch.expert_size)
                           .linear_names({arch.expert_gate, arch.expert_up, arch.expert_down});
  nn::MoELayer block(nn::TopKRouter(arch.hidden_size, arch.num_experts, arch.top_k, routing).ptr(),
                     nn::ExpertBank(experts).ptr(), options);
  if (arch.shared_size > 0)
    block->add_shared_expert(arch.shared_name, nn::GatedMLP(arch.hidden_size, arch.shared_size).ptr(),
                             arch.shared_gated);
  return block;
}

void load_moe_block(nn::MoELayerImpl& block, const arch::MoEArch& arch, const io::TensorFile& file,
                    const std::string& path, const std::string& prefix) {
  const at::NoGradGuard no_grad;
  const arch::ExpertLayout layout = arch::match_moe_block(file.header().tensors, path, prefix, arch);
  for (auto& item : block.named_parameters()) {
    if (nn::is_hollow(item.value())) item.value().set_data(at::empty(item.value().sizes(), at::kFloat));
  }
  for (const arch::ParameterSpec& tensor : arch::moe_block_tensors(arch, layout))
    place_of(block, arch, tensor.name).copy_(file.tensor(prefix + tensor.name));
}

io::NamedTensors moe_block_state(const nn::MoELayerImpl& block, const arch::MoEArch& arch, arch::ExpertLayout layout,
                                 const std::string& prefix) {
  io::NamedTensors tensors;
  for (const arch::ParameterSpec& tensor : arch::moe_block_tensors(arch, layout))
    tensors.emplace_back(prefix + tensor.name, place_of(block, arch, tensor.name));
  return tensors;
}

}  // namespace lathe::models
