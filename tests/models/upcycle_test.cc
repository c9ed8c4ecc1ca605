#include "lathe/models/upcycle.h"

#include <filesystem>

#include "expect_error.h"
#include "lathe/models/load.h"
#include "lathe/models/mixer.h"
#include "lathe/models/text_classifier.h"
#include "lathe/nn/modules.h"
#include "lathe/nn/moe.h"
#include "small_bert.h"

namespace lathe::models {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryDirectory;

arch::MlpExperts five_experts() {
  arch::MlpExperts experts;
  experts.num_experts = 5;
  experts.top_k = 3;
  experts.shared_experts = 2;
  return experts;
}

std::string upcycled(const TemporaryDirectory& directory, const std::string& model) {
  std::filesystem::create_directory(directory / "experts");
  const auto opened = formats::ModelDirectory::open(model);
  upcycle(opened, five_experts(), 1, directory / "experts");
  return (directory / "experts").string();
}

// A classifier of a directory, every weight trainable; what the file lacks (the head) is drawn alike.
template <typename Build>
auto load(const std::string& path, const Build& build) {
  const auto directory = formats::ModelDirectory::open(path);
  const arch::ModelConfig config = arch::read_model_config(directory.config_path());
  auto model = build(config.arch);
  for (at::Tensor& parameter : model->parameters()) parameter.requires_grad_(true);
  load_weights(*model, arch::match_checkpoint(directory, config.arch, 2), 0);
  return model;
}

// The largest of the routers' task gradients, and of the experts'.
std::pair<double, double> gradients(const torch::nn::Module& model) {
  double routers = 0, experts = 0;
  for (const auto& item : model.named_parameters()) {
    if (!item.value().grad().defined()) continue;
    const double size = item.value().grad().abs().max().template item<double>();
    if (item.key().ends_with("gate.weight")) routers = std::max(routers, size);
    if (item.key().ends_with("up_proj")) experts = std::max(experts, size);
  }
  return {routers, experts};
}

TEST(Upcycle, ComputesWhatTheDenseEncoderDoesAndGivesRoutersNoTaskGradient) {
  const TemporaryDirectory directory;
  const std::string dense = testing::write_small_bert(directory), experts = upcycled(directory, dense);
  const auto build = [](const arch::Arch& arch) { return build_text_classifier(arch, 2); };
  const TokenBatch batch = pack_tokens({{2, 5, 9, 11, 3}, {2, 20, 3}}, {{0, 0, 0, 0, 0}, {0, 0, 0}});
  const at::Tensor expected = load(dense, build)->forward(batch, {});
  const auto model = load(experts, build);
  ASSERT_EQ(nn::moe_layers(*model).size(), 3U);
  const at::Tensor logits = model->forward(batch, {});
  // Sums of three gated copies round otherwise than one: a few float32 steps through three layers.
  testing::expect_close(logits, expected, 2e-6, 2e-6);
  const at::Tensor shared = model->named_parameters()["bert.encoder.layer.0.moe.shared_experts.up_proj.weight"];
  EXPECT_GT(shared.abs().max().item<double>(), 0) << "a shared expert of zeros would never learn";
  nn::cross_entropy_sum(logits, at::zeros({2}, at::kLong)).backward();
  const auto [routers, banks] = gradients(*model);
  EXPECT_GT(banks, 1e-3);
  EXPECT_LT(routers, 1e-6 * banks + 1e-8) << "gates that sum to 1 over equal experts";
}

TEST(Upcycle, ComputesWhatTheDenseMixerDoes) {
  const TemporaryDirectory directory;
  const std::string config = directory.write(
      "mixer/config.json",
      R"({"architecture": "mixer_s16_224", "num_classes": 2, "model_args": {"img_size": 8, "patch_size": 4,
      "num_blocks": 2, "embed_dim": 12, "mlp_ratio": [0.5, 2]}})");
  const arch::Arch arch = arch::read_model_config(config).arch;
  io::NamedTensors tensors;
  double phase = 0;
  for (const auto& parameter : arch::classifier_parameters(arch, 2))
    tensors.emplace_back(parameter.name, testing::ramp(parameter.shape, 0.37, phase += 0.1) * 0.2 +
                                             (parameter.name.find("norm") != std::string::npos ? 1 : 0));
  const std::string dense = (directory / "mixer").string();
  io::write_safetensors(dense + "/model.safetensors", tensors);
  const auto build = [](const arch::Arch& shape) { return build_image_classifier(shape, 2); };
  const at::Tensor pixels = testing::ramp({3, 3, 8, 8}, 0.21, 0.5);
  const auto model = load(upcycled(directory, dense), build);
  ASSERT_EQ(nn::moe_layers(*model).size(), 2U);
  testing::expect_close(model->forward(pixels, {}), load(dense, build)->forward(pixels, {}), 2e-6, 2e-6);
}

TEST(Upcycle, RefusesAModelThatHasExperts) {
  const TemporaryDirectory directory;
  const std::string experts = upcycled(directory, testing::write_small_bert(directory));
  const auto model = formats::ModelDirectory::open(experts);
  try {
    upcycle(model, five_experts(), 1, directory / "experts");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("config.json: has experts already"));
  }
}

}  // namespace
}  // namespace lathe::models
