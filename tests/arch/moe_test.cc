#include "lathe/arch/moe.h"

#include "expect_error.h"

namespace lathe::arch {
namespace {

MoEArch read(const std::string& text) {
  const Json json = parse_json(text, "config.json");
  return read_moe_arch(JsonObject(json, "config.json"));
}

std::string mixtral(const std::string& more) {
  return R"({"model_type": "mixtral", "hidden_size": 8, "intermediate_size": 6, "num_local_experts": 4)" + more + "}";
}

formats::TensorInfo info(const ParameterSpec& spec) {
  formats::TensorInfo result;
  result.name = "p." + spec.name;
  result.shape = spec.shape;
  return result;
}

std::vector<formats::TensorInfo> file_of(const MoEArch& arch, ExpertLayout layout) {
  std::vector<formats::TensorInfo> tensors;
  for (const ParameterSpec& spec : moe_block_tensors(arch, layout)) tensors.push_back(info(spec));
  return tensors;
}

std::string refusal(const std::vector<formats::TensorInfo>& tensors, const MoEArch& arch) {
  return testing::error_text(ErrorKind::Data, [&] { match_moe_block(tensors, "f", "p.", arch); });
}

TEST(MoEArch, CountsTheParametersOfPublishedBlocks) {
  const MoEArch arch = read(
      R"({"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2})");
  for (const ExpertLayout layout : {ExpertLayout::PerExpert, ExpertLayout::Fused}) {
    int64_t count = 0;
    for (const ParameterSpec& tensor : moe_block_tensors(arch, layout)) {
      int64_t size = 1;
      for (const int64_t n : tensor.shape) size *= n;
      count += size;
    }
    EXPECT_EQ(count, int64_t{3} * 4096 * 14336 * 8 + 8 * 4096);
  }
}

TEST(MoEArch, ReadsEitherNameOfTheNumberOfExperts) {
  const MoEArch arch = read(
      R"({"model_type": "deepseek_v3", "hidden_size": 8, "moe_intermediate_size": 6, "num_local_experts": 8, "num_experts_per_tok": 2,
          "n_group": 4, "topk_group": 2, "n_shared_experts": 2, "routed_scaling_factor": 2.5})");
  EXPECT_EQ(arch.num_experts, 8);
  EXPECT_EQ(arch.shared_size, 12);
  EXPECT_TRUE(arch.sigmoid);
}

TEST(MoEArch, RefusesWhatDoesNotFitByName) {
  const auto refused = [](const std::string& text) {
    return testing::error_text(ErrorKind::Data, [&] { read(text); });
  };
  EXPECT_THAT(refused(mixtral(R"(, "num_experts_per_tok": 5)")), ::testing::HasSubstr("num_experts_per_tok"));
  EXPECT_EQ(refused(mixtral(R"(, "num_experts_per_tok": 1)")),
            "config.json: num_experts_per_tok: 1 with renormalised gates: the gate is always 1 and the router gets no "
            "gradient");
  EXPECT_EQ(refused(mixtral(R"(, "num_experts_per_tok": 2, "hidden_act": "gelu")")),
            "config.json: hidden_act: \"gelu\" is not supported (supported: silu)");
  EXPECT_EQ(
      refused(
          R"({"model_type": "deepseek_v3", "hidden_size": 8, "moe_intermediate_size": 6, "n_routed_experts": 8, "num_experts_per_tok": 5,
              "n_group": 4, "topk_group": 2})"),
      "config.json: topk_group: expected groups that hold num_experts_per_tok = 5 experts, got 2");
}

TEST(MoEBlock, RecognisesEitherLayoutAndRefusesBothAtOnce) {
  const MoEArch arch = read(mixtral(R"(, "num_experts_per_tok": 2)"));
  auto single = file_of(arch, ExpertLayout::PerExpert), fused = file_of(arch, ExpertLayout::Fused);
  EXPECT_EQ(match_moe_block(single, "f", "p.", arch), ExpertLayout::PerExpert);
  EXPECT_EQ(match_moe_block(fused, "f", "p.", arch), ExpertLayout::Fused);
  fused.push_back(info({"experts.0.w1.weight", {6, 8}}));
  EXPECT_EQ(refusal(fused, arch),
            "f: p.experts.down_proj: stands beside p.experts.0.w1.weight (experts are either fused or one by one)");
}

TEST(MoEBlock, ListsWhatAdaptersMayTarget) {
  const MoEArch qwen = read(
      R"({"model_type": "qwen2_moe", "hidden_size": 8, "moe_intermediate_size": 6, "shared_expert_intermediate_size": 10,
          "num_experts": 4, "num_experts_per_tok": 2})");
  const auto linears = moe_block_linears(qwen);
  ASSERT_EQ(linears.size(), 3 * (4 + 1U));
  EXPECT_EQ(linears[2].path, "experts.0.down_proj");
  EXPECT_EQ(linears[2].in_features, 6);
  EXPECT_EQ(linears[12].path, "shared_expert.gate_proj");
  const auto of_mixtral = moe_block_linears(read(mixtral(R"(, "num_experts_per_tok": 2)")));
  EXPECT_EQ(of_mixtral[1].path, "experts.0.w3");
  EXPECT_EQ(of_mixtral[2].out_features, 8);
  EXPECT_EQ(moe_block_parameters(qwen)[0].out_features, 12);
}

TEST(MoEBlock, NamesEveryTensorThatDoesNotFit) {
  const MoEArch arch = read(mixtral(R"(, "num_experts_per_tok": 2)"));
  auto tensors = file_of(arch, ExpertLayout::PerExpert);
  tensors[1].shape = {5, 8};
  tensors[2].dtype = formats::Dtype::I8;
  tensors[3].name = "p.experts.7.w2.weight";
  EXPECT_EQ(refusal(tensors, arch),
            "f: p.experts.0.w1.weight: expected shape [6, 8], got [5, 8]\n"
            "f: p.experts.0.w3.weight: expected F32, F16, BF16 or F64, got I8\n"
            "f: p.experts.0.w2.weight: is missing\n"
            "f: p.experts.7.w2.weight: is not a tensor of this architecture (nothing is silently ignored)");
}

}  // namespace
}  // namespace lathe::arch
