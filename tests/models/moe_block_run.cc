// Runs a mixture-of-experts block forward and backward for tests/interop/moe.py:
//   moe_block_run CONFIG.json WEIGHTS.safetensors PREFIX INPUTS.safetensors OUT.safetensors FUSED.safetensors
// INPUTS has x and grad [T, D]; OUT gets y, dx, aux_loss, the weights and "grad." of each, one by one; FUSED the
// weights in the other layout.
#include <ATen/core/grad_mode.h>

#include <cstdio>
#include <string>

#include "lathe/models/moe_block.h"

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  using namespace lathe;
  try {
    const Json json = read_json_file(argv[1]);
    const arch::MoEArch arch = arch::read_moe_arch(JsonObject(json, argv[1]));
    const std::string prefix = argv[3];
    const io::TensorFile weights(argv[2]), inputs(argv[4]);
    nn::MoELayer block = models::build_moe_block(arch);
    models::load_moe_block(*block, arch, weights, argv[2], prefix);
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
