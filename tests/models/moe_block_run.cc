// Runs a mixture-of-experts block forward and backward for tests/interop/moe.py:
//   moe_block_run CONFIG.json WEIGHTS.safetensors PREFIX INPUTS.safetensors OUT.safetensors FUSED.safetensors
// INPUTS has x and grad [T, D]; OUT gets y, dx, aux_loss, the weights and "grad." of each, one by one; FUSED the
// weights in the other layout. And with an adapter in PEFT's format:
//   moe_block_run CONFIG.json WEIGHTS.safetensors PREFIX INPUTS.safetensors OUT.safetensors ADAPTER ADAPTER_OUT
// OUT gets y, dx, "grad." of each adapter matrix, and y_merged; ADAPTER_OUT the adapter again.
#include <ATen/core/grad_mode.h>

#include <cstdio>
#include <string>

#include "lathe/adapters/lora.h"
#include "lathe/models/moe_block.h"

namespace {

using namespace lathe;

void run_adapter(nn::MoELayer block, const arch::MoEArch& arch, const io::TensorFile& inputs, char** argv) {
  const std::string directory = argv[6];
  const formats::AdapterConfig config = formats::read_adapter_config(directory);
  const auto targets = arch::match_targets(arch::moe_block_linears(arch), config, arch::BertArch(),
                                           arch::origin_of_adapter(directory), arch::moe_block_parameters(arch));
  for (at::Tensor& parameter : block->parameters()) parameter.requires_grad_(false);
  adapters::attach(*block, targets, config);
  adapters::initialise(*block, 0);
  adapters::load(directory, *block, {});
  const at::Tensor x = inputs.tensor("x").clone().requires_grad_();
  const at::Tensor y = block->forward(x, {.training = true});
  y.backward(inputs.tensor("grad"));
  io::NamedTensors out = {{"y", y.detach()}, {"dx", x.grad()}};
  for (const auto& [name, parameter] : adapters::trainable_parameters(*block))
    out.emplace_back("grad." + name, parameter.grad());
  adapters::save(argv[7], *block, config, {});
  adapters::merge(*block);
  out.emplace_back("y_merged", block->forward(x).detach());
  io::write_safetensors(argv[5], out);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7 && argc != 8) return 2;
  try {
    const Json json = read_json_file(argv[1]);
    const arch::MoEArch arch = arch::read_moe_arch(JsonObject(json, argv[1]));
    const std::string prefix = argv[3];
    const io::TensorFile weights(argv[2]), inputs(argv[4]);
    nn::MoELayer block = models::build_moe_block(arch);
    models::load_moe_block(*block, arch, weights, argv[2], prefix);
    if (argc == 8) {
      run_adapter(block, arch, inputs, argv);
      return 0;
    }
    for (at::Tensor& parameter : block->parameters()) parameter.requires_grad_(true);
    const at::Tensor x = inputs.tensor("x").clone().requires_grad_();
    const at::Tensor y = block->forward(x, {.training = true});
    y.backward(inputs.tensor("grad"));
    io::NamedTensors out = models::moe_block_state(*block, arch, arch::ExpertLayout::PerExpert, prefix);
    nn::MoELayer gradients = models::build_moe_block(arch);
    const auto from = block->named_parameters();
    for (auto& item : gradients->named_parameters()) item.value().set_data(from[item.key()].grad());
    for (auto& [name, tensor] : models::moe_block_state(*gradients, arch, arch::ExpertLayout::PerExpert, "grad."))
      if (!name.ends_with("e_score_correction_bias")) out.emplace_back(name, tensor);
    out.emplace_back("y", y.detach());
    out.emplace_back("dx", x.grad());
    out.emplace_back("aux_loss", nn::aux_loss(block->window()).detach());
    io::write_safetensors(argv[5], out);
    io::write_safetensors(argv[6], models::moe_block_state(*block, arch, arch::ExpertLayout::Fused, prefix));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 3;
  }
  return 0;
}
