#include "lathe/train/measure_step.h"

#include <ATen/Parallel.h>

#include <filesystem>

#include "lathe/arch/arch.h"
#include "lathe/cost/plan.h"
#include "lathe/io/tensors.h"
#include "lathe/models/quantize_directory.h"
#include "temporary_directory.h"
#include "tensor_expect.h"

namespace lathe::train {
namespace {

struct PlannedCase {
  const char* name;
  bool images;
  std::vector<std::string> overrides;
};

std::ostream& operator<<(std::ostream& stream, const PlannedCase& c) { return stream << c.name; }

constexpr const char* kText = R"(
model: {path: model, task: classification, max_length: 64}
adapter: {type: lora, rank: 4, alpha: 8}
data: {train: train.jsonl}
optimizer: {lr: 0.001}
training: {max_steps: 2, batch_size: 8}
output: {dir: unused}
)";
constexpr const char* kImages = R"(
model: {task: classification, init: random, arch: {model_type: mixer, image_size: 32, patch_size: 4, num_blocks: 4, hidden_size: 96}}
adapter: {type: none}
data: {train: train.idx}
optimizer: {lr: 0.001}
training: {max_steps: 2, batch_size: 8}
output: {dir: unused}
)";
constexpr const char* kBertConfig =
    R"({"model_type": "bert", "vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
  "intermediate_size": 512, "max_position_embeddings": 64, "type_vocab_size": 2, "hidden_act": "gelu"})";

class MeasureStepTest : public ::testing::TestWithParam<PlannedCase> {
 protected:
  MeasureStepTest() { at::set_num_threads(1); }

  recipe::Recipe make_recipe() const {
    const std::string base = directory_.path().string();
    if (GetParam().images) {
      recipe::Recipe recipe = recipe::parse(kImages, "recipe.yaml", base, GetParam().overrides);
      recipe.model.task = recipe::Task::ImageClassification;
      return recipe;
    }
    const std::string config = directory_.write("model/config.json", kBertConfig);
    io::NamedTensors tensors;
    for (const auto& parameter : arch::classifier_parameters(arch::read_model_config(config).arch, 2)) {
      if (!parameter.name.starts_with("classifier"))
        tensors.emplace_back(parameter.name, testing::ramp(parameter.shape, 0.37, 0.1) * 0.1);
    }
    io::write_safetensors(base + "/model/model.safetensors", tensors);
    std::filesystem::create_directories(base + "/four");
    models::quantize_directory(formats::ModelDirectory::open(base + "/model"), nn::NF4LinearOptions(), {"classifier"},
                               base + "/four");
    std::vector<std::string> overrides = GetParam().overrides;
    for (std::string& word : overrides)
      if (word == "model.path=four") word = "model.path=" + base + "/four";
    return recipe::parse(kText, "recipe.yaml", base, overrides);
  }

  testing::TemporaryDirectory directory_;
};

// What nobody tuned the ledger for: it follows the modules, and allocations are exact up to small tensors.
TEST_P(MeasureStepTest, TakesWhatThePlanForetells) {
  const recipe::Recipe recipe = make_recipe();
  const MeasuredStep measured = measure_step(recipe);
  const recipe::ResolvedModel resolved = recipe::resolve_model(recipe);
  const cost::Plan plan = cost::make_plan(recipe, resolved, measured.loads);
  const cost::Plan counted = cost::make_plan(recipe, resolved, measured.counted_loads);
  const double peak = plan.memory.peak / static_cast<double>(measured.peak_bytes) - 1;
  const double activations = plan.memory.activations / static_cast<double>(measured.activation_bytes) - 1;
  std::printf("%-28s peak %10.0f planned %10ld measured %+.2f %%   activations %+.2f %%\n", GetParam().name,
              plan.memory.peak, static_cast<long>(measured.peak_bytes), 100 * peak, 100 * activations);
  EXPECT_LT(std::abs(peak), 0.01);
  EXPECT_LT(std::abs(activations), 0.01);
  const std::map<std::string, double> phases(plan.memory.phases.begin(), plan.memory.phases.end());
  for (const auto& [phase, bytes] : measured.phase_peaks) {
    ASSERT_TRUE(phases.contains(phase)) << phase;
    EXPECT_LT(std::abs(phases.at(phase) / static_cast<double>(bytes) - 1), 0.02) << phase;
  }
  EXPECT_GE(measured.phase_peaks.size(), 2U);
  EXPECT_EQ(std::round(counted.flops.total()), static_cast<double>(measured.flops));
}

std::vector<PlannedCase> cases() {
  const std::string policy = "training.activation_checkpointing=";
  const std::string all = "adapter.target_modules=all-linear";
  return {
      {"lora", false, {}},
      {"lora_elementwise", false, {policy + "elementwise"}},
      {"lora_full", false, {policy + "full"}},
      {"lora_every_2", false, {policy + "{every: 2}"}},
      {"lora_layers_2", false, {policy + "{layers: 2}"}},
      {"lora_no_dropout_batch_32", false, {"model.dropout=0", "training.batch_size=32"}},
      {"lora_all_linear_dropout", false, {all, "adapter.dropout=0.1"}},
      {"lora_all_linear_elementwise", false, {all, policy + "elementwise"}},
      {"lora_all_linear_full", false, {all, policy + "full", "training.batch_size=16"}},
      {"lora_bfloat16", false, {"model.dtype=bfloat16"}},
      {"lora_bfloat16_compute", false, {"model.dtype=bfloat16", "model.compute=bfloat16"}},
      {"qlora_nf4", false, {"quant.type=nf4"}},
      {"qlora_double_elementwise", false, {"quant={type: nf4, double_quant: true}", policy + "elementwise"}},
      {"qlora_stored", false, {"model.path=four"}},
      {"qlora_stored_all_linear_full", false, {"model.path=four", all, policy + "full", "training.batch_size=16"}},
      {"all_weights", false, {"adapter={type: none}"}},
      {"all_weights_full", false, {"adapter={type: none}", policy + "full", "training.batch_size=32"}},
      {"all_weights_accumulated", false, {"adapter={type: none}", "training.gradient_accumulation_steps=3"}},
      {"all_weights_bfloat16_sgd", false, {"adapter={type: none}", "model.dtype=bfloat16", "optimizer.type=sgd"}},
      {"experts", false, {"adapter={type: none}", "model.init=random", "model.moe.num_experts=4"}},
      {"experts_full",
       false,
       {"adapter={type: none}", "model.init=random", "model.moe.num_experts=4", policy + "full"}},
      {"experts_accumulated",
       false,
       {"adapter={type: none}", "model.init=random", "model.moe.num_experts=4",
        "training.gradient_accumulation_steps=2"}},
      {"experts_lora", false, {"model.init=random", "model.moe={num_experts: 4, router: sigmoid}"}},
      {"experts_shared_lora",
       false,
       {"model.init=random", "model.moe={num_experts: 4, shared_experts: 2}", "adapter.target_modules=all-linear"}},
      {"experts_lora_full",
       false,
       {"model.init=random", "model.moe.num_experts=4", all, policy + "full", "adapter.dropout=0.1"}},
      {"experts_qlora", false, {"model.init=random", "model.moe.num_experts=4", all, "quant={type: nf4}"}},
      {"experts_qlora_elementwise",
       false,
       {"model.init=random", "model.moe.num_experts=4", all, "quant={type: nf4, double_quant: true}",
        policy + "elementwise", "training.gradient_accumulation_steps=2"}},
      {"mixer_experts", true, {"model.moe={num_experts: 4, top_k: 2}"}},
      // What a router keeps beside few features shows with many experts.
      {"experts_many",
       false,
       {"adapter={type: none}", "model.init=random", "model.moe={num_experts: 32, z_loss_weight: 0.001}"}},
      {"experts_many_sigmoid",
       false,
       {"adapter={type: none}", "model.init=random", "model.moe={num_experts: 32, router: sigmoid, top_k: 4}"}},
      {"experts_many_noisy",
       false,
       {"adapter={type: none}", "model.init=random", "model.moe={num_experts: 32, router: noisy}"}},
      {"experts_many_noisy_full",
       false,
       {"adapter={type: none}", "model.init=random", "model.moe={num_experts: 32, router: noisy}", policy + "full"}},
      {"experts_many_choose",
       false,
       {"adapter={type: none}", "model.init=random", "model.moe={num_experts: 32, router: expert_choice}"}},
      {"experts_many_random",
       false,
       {"adapter={type: none}", "model.init=random", "model.moe={num_experts: 32, router: random}"}},
      {"experts_jitter", false, {"model.init=random", all, "model.moe={num_experts: 4, jitter: 0.01}"}},
      {"experts_capacity",
       false,
       {"adapter={type: none}", "model.init=random", "model.moe={num_experts: 8, capacity_factor: 0.75}"}},
      {"experts_capacity_full",
       false,
       {"adapter={type: none}", "model.init=random", "model.moe={num_experts: 8, capacity_factor: 1}",
        policy + "full"}},
      {"mixer_experts_shared", true, {"model.moe={num_experts: 4, shared_experts: 1}"}},
      {"mixer", true, {}},
      {"mixer_elementwise", true, {policy + "elementwise"}},
      {"mixer_full", true, {policy + "full", "training.batch_size=32"}},
      {"mixer_layers_3", true, {policy + "{layers: 3}", "training.batch_size=16"}},
      {"mixer_lora", true, {"adapter={type: lora, rank: 4, alpha: 8}"}},
      {"mixer_lora_elementwise", true, {"adapter={type: lora, rank: 4, alpha: 8}", policy + "elementwise"}},
  };
}

INSTANTIATE_TEST_SUITE_P(Recipes, MeasureStepTest, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace lathe::train
