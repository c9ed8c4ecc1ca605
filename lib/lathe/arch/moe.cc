#include "lathe/arch/moe.h"

#include <map>

#include "lathe/arch/checkpoint.h"
#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

constexpr int64_t kMaxWidth = 1 << 24;
constexpr int64_t kMaxExperts = 1 << 16;
constexpr size_t kMaxDiagnostics = 40;

void read_sizes(const JsonObject& config, MoEArch& arch) {
  const bool mixtral = arch.model_type == "mixtral", deepseek = arch.model_type == "deepseek_v3";
  // Either name is written, depending on the release that saved the file.
  const char* count = mixtral ? "num_local_experts" : deepseek ? "n_routed_experts" : "num_experts";
  if (config.find(count) == nullptr && config.find("num_local_experts") != nullptr) count = "num_local_experts";
  const char* width = mixtral || arch.model_type == "olmoe" ? "intermediate_size" : "moe_intermediate_size";
  arch.hidden_size = config.integer("hidden_size", 1, kMaxWidth);
  arch.expert_size = config.integer(width, 1, kMaxWidth);
  arch.num_experts = config.integer(count, 1, kMaxExperts);
  arch.top_k = config.integer("num_experts_per_tok", 1, arch.num_experts);
}

void read_deepseek(const JsonObject& config, MoEArch& arch) {
  arch.sigmoid = true;
  arch.num_groups = config.integer("n_group", 1, arch.num_experts, 1);
  arch.top_groups = config.integer("topk_group", 1, arch.num_groups, 1);
  arch.scale = config.number("routed_scaling_factor", 1);
  arch.renormalise = config.boolean("norm_topk_prob", true);
  arch.shared_size = arch.expert_size * config.integer("n_shared_experts", 0, kMaxExperts, 1);
  arch.shared_name = "shared_experts";
  const int64_t group_size = arch.num_experts / arch.num_groups;
  if (arch.num_experts % arch.num_groups != 0 || (arch.num_groups > 1 && group_size < 2)) {
    throw config.error("n_group", Diagnostic::expected("groups of equal size, at least 2, of " +
                                                           std::to_string(arch.num_experts) + " experts",
                                                       std::to_string(arch.num_groups)));
  }
  if (arch.top_groups * group_size < arch.top_k) {
    throw config.error(
        "topk_group",
        Diagnostic::expected("groups that hold num_experts_per_tok = " + std::to_string(arch.top_k) + " experts",
                             std::to_string(arch.top_groups)));
  }
}

void check(const formats::TensorInfo& info, const ParameterSpec& expected, const std::string& file,
           std::vector<Diagnostic>& mistakes) {
  if (info.shape != expected.shape) {
    mistakes.push_back(
        {file, 0, 0, info.name,
         Diagnostic::expected("shape " + formats::shape_text(expected.shape), formats::shape_text(info.shape)), ""});
  } else if (!is_float(info.dtype)) {
    mistakes.push_back({file, 0, 0, info.name,
                        Diagnostic::expected("F32, F16, BF16 or F64", std::string(formats::dtype_name(info.dtype))),
                        ""});
  }
}

}  // namespace

bool is_moe(const std::string& model_type) {
  return model_type == "mixtral" || model_type == "qwen2_moe" || model_type == "qwen3_moe" || model_type == "olmoe" ||
         model_type == "deepseek_v3";
}

MoEArch read_moe_arch(const JsonObject& config) {
  MoEArch arch;
  arch.model_type = config.string("model_type");
  if (!is_moe(arch.model_type)) {
    throw config.error("model_type", quote(arch.model_type) + " has no mixture of experts that is supported",
                       "supported: mixtral, qwen2_moe, qwen3_moe, olmoe, deepseek_v3");
  }
  const bool mixtral = arch.model_type == "mixtral";
  arch.block_name = mixtral ? "block_sparse_moe" : "mlp";
  arch.expert_gate = mixtral ? "w1" : "gate_proj";
  arch.expert_up = mixtral ? "w3" : "up_proj";
  arch.expert_down = mixtral ? "w2" : "down_proj";
  read_sizes(config, arch);
  if (arch.model_type == "deepseek_v3") {
    read_deepseek(config, arch);
  } else if (!mixtral) {
    arch.renormalise = config.boolean("norm_topk_prob", false);
  }
  if (arch.model_type == "qwen2_moe") {
    arch.shared_size = config.integer("shared_expert_intermediate_size", 1, kMaxWidth);
    arch.shared_gated = true;
    arch.shared_name = "shared_expert";
  }
  if (arch.renormalise && arch.top_k == 1 && arch.num_experts > 1) {
    throw config.error("num_experts_per_tok",
                       "1 with renormalised gates: the gate is always 1 and the router gets no gradient");
  }
  if (const std::string act = config.string("hidden_act", "silu"); act != "silu")
    throw config.error("hidden_act", quote(act) + " is not supported", "supported: silu");
  return arch;
}

std::vector<ParameterSpec> moe_block_tensors(const MoEArch& arch, ExpertLayout layout) {
  const int64_t D = arch.hidden_size, F = arch.expert_size, E = arch.num_experts;
  std::vector<ParameterSpec> tensors = {{"gate.weight", {E, D}}};
  if (arch.sigmoid) tensors.push_back({"gate.e_score_correction_bias", {E}});
  if (layout == ExpertLayout::Fused) {
    tensors.push_back({"experts.gate_up_proj", {E, 2 * F, D}});
    tensors.push_back({"experts.down_proj", {E, D, F}});
  } else {
    for (int64_t e = 0; e < E; ++e) {
      const std::string expert = "experts." + std::to_string(e) + ".";
      tensors.push_back({expert + arch.expert_gate + ".weight", {F, D}});
      tensors.push_back({expert + arch.expert_up + ".weight", {F, D}});
      tensors.push_back({expert + arch.expert_down + ".weight", {D, F}});
    }
  }
  if (arch.shared_size > 0) {
    tensors.push_back({arch.shared_name + ".gate_proj.weight", {arch.shared_size, D}});
    tensors.push_back({arch.shared_name + ".up_proj.weight", {arch.shared_size, D}});
    tensors.push_back({arch.shared_name + ".down_proj.weight", {D, arch.shared_size}});
  }
  if (arch.shared_gated) tensors.push_back({"shared_expert_gate.weight", {1, D}});
  return tensors;
}

std::vector<LinearSpec> moe_block_linears(const MoEArch& arch) {
  constexpr std::string_view kWeight = ".weight";
  std::vector<LinearSpec> linears;
  for (const ParameterSpec& tensor : moe_block_tensors(arch, ExpertLayout::PerExpert)) {
    const bool router = tensor.name.starts_with("gate."), gate = tensor.name == "shared_expert_gate.weight";
    if (router || gate) continue;
    linears.push_back({tensor.name.substr(0, tensor.name.size() - kWeight.size()), tensor.shape[1], tensor.shape[0]});
  }
  return linears;
}

std::vector<LinearSpec> moe_block_parameters(const MoEArch& arch) {
  return {{"experts.gate_up_proj", arch.hidden_size, 2 * arch.expert_size, arch.num_experts},
          {"experts.down_proj", arch.expert_size, arch.hidden_size, arch.num_experts}};
}

ExpertLayout match_moe_block(const std::vector<formats::TensorInfo>& tensors, const std::string& file,
                             const std::string& prefix, const MoEArch& arch) {
  std::map<std::string, const formats::TensorInfo*> found;
  std::string fused, single;
  for (const formats::TensorInfo& info : tensors) {
    if (!info.name.starts_with(prefix)) continue;
    const std::string name = info.name.substr(prefix.size());
    found[name] = &info;
    if (name == "experts.gate_up_proj" || name == "experts.down_proj") {
      fused = info.name;
    } else if (name.starts_with("experts.")) {
      single = info.name;
    }
  }
  if (!fused.empty() && !single.empty())
    throw data_error_in(file, fused, "stands beside " + single, "experts are either fused or one by one");
  const ExpertLayout layout = fused.empty() ? ExpertLayout::PerExpert : ExpertLayout::Fused;
  std::vector<Diagnostic> mistakes;
  for (const ParameterSpec& expected : moe_block_tensors(arch, layout)) {
    const auto item = found.find(expected.name);
    if (item == found.end()) {
      mistakes.push_back({file, 0, 0, prefix + expected.name, "is missing", ""});
      continue;
    }
    check(*item->second, expected, file, mistakes);
    found.erase(item);
  }
  for (const auto& [name, info] : found)
    mistakes.push_back({file, 0, 0, info->name, "is not a tensor of this architecture", "nothing is silently ignored"});
  if (mistakes.size() > kMaxDiagnostics) mistakes.resize(kMaxDiagnostics);
  if (!mistakes.empty()) throw Error(ErrorKind::Data, std::move(mistakes));
  return layout;
}

}  // namespace lathe::arch
