#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lathe/arch/spec.h"
#include "lathe/base/json.h"
#include "lathe/formats/safetensors.h"

namespace lathe::arch {

/// The mixture-of-experts block of a decoder, as its config.json has it: Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE,
/// DeepSeek-V3. Experts are SwiGLU.
struct MoEArch {
  std::string model_type;
  int64_t hidden_size = 0;
  int64_t expert_size = 0;  ///< hidden width of an expert
  int64_t num_experts = 0;
  int64_t top_k = 0;
  bool renormalise = true;
  bool sigmoid = false;  ///< scores by sigmoid, chosen under a correction bias
  int64_t num_groups = 1;
  int64_t top_groups = 1;
  double scale = 1;
  int64_t shared_size = 0;    ///< hidden width of the shared expert; 0: none
  bool shared_gated = false;  ///< through a sigmoid of its own
  std::string shared_name{};  ///< of the module: shared_expert, shared_experts
  std::string block_name{};   ///< of the module on disk: block_sparse_moe, mlp
  std::string expert_gate{};  ///< of an expert's matrices on disk: w1 or gate_proj,
  std::string expert_up{};    ///< w3 or up_proj,
  std::string expert_down{};  ///< w2 or down_proj
};

bool is_moe(const std::string& model_type);

/// Reads and checks the block's part of a config.json. Throws Error{Data} naming the key: top_k above the experts,
/// groups that do not fit, renormalised top-1 (its router would get no gradient), another activation than silu.
MoEArch read_moe_arch(const JsonObject& config);

enum class ExpertLayout {
  PerExpert,  ///< experts.{e}.{gate,up,down}: the files of transformers
  Fused,      ///< experts.gate_up_proj [E, 2F, D] and experts.down_proj [E, D, F]: its modules
};

/// The tensors of a block on disk, names relative to the block.
std::vector<ParameterSpec> moe_block_tensors(const MoEArch& arch, ExpertLayout layout);

/// What adapters may target in a block, names relative to it: linear layers (experts one by one, shared experts), and
/// the tensors of all experts.
std::vector<LinearSpec> moe_block_linears(const MoEArch& arch);
std::vector<LinearSpec> moe_block_parameters(const MoEArch& arch);

/// The layout of the tensors below `prefix` ("model.layers.0.mlp."), all of them found and checked.
/// Throws Error{Data} with one diagnostic per tensor (at most 40) that is missing, of another shape or dtype, or not of
/// the block; for fused and per-expert tensors side by side.
ExpertLayout match_moe_block(const std::vector<formats::TensorInfo>& tensors, const std::string& file,
                             const std::string& prefix, const MoEArch& arch);

}  // namespace lathe::arch
