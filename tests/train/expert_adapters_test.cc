// Adapters and four bits on the experts of a checkpoint.
#include <gmock/gmock.h>

#include <filesystem>

#include "expect_error.h"
#include "lathe/models/upcycle.h"
#include "lathe/nn/moe_experts.h"
#include "lathe/train/save.h"
#include "small_bert.h"
#include "train/run_fixture.h"

namespace lathe::train {
namespace {

using ::testing::Contains;
using testing::error_text;
using ::testing::HasSubstr;
using ::testing::Key;
using ::testing::Not;

namespace fs = std::filesystem;

/// The small BERT with four experts in the place of each MLP, a shared one beside them, and a recipe that adapts them.
class ExpertAdapters : public RunFixture {
 protected:
  ExpertAdapters() {
    arch::MlpExperts experts;
    experts.num_experts = 4;
    experts.shared_experts = 1;
    fs::create_directory(directory_ / "experts");
    models::upcycle(formats::ModelDirectory::open(testing::write_small_bert(directory_)), experts, 1,
                    directory_ / "experts");
    write_eight_texts(directory_);
    directory_.write("recipe.yaml", R"(
model: {path: experts, task: classification, dropout: 0}
adapter: {type: lora, rank: 2, alpha: 4, target_modules: [query, up_proj, down_proj]}
data: {train: train.jsonl, shuffle: false, labels: ["0", "1"]}
optimizer: {lr: 0.02, schedule: constant}
training: {max_steps: 4, batch_size: 4, seed: 5}
output: {dir: placeholder}
)");
  }

  std::map<std::string, Tensor> adapter(const std::string& run) const {
    std::map<std::string, Tensor> tensors;
    const io::TensorFile file((directory_ / (run + "/adapter/adapter_model.safetensors")).string());
    for (const auto& [name, tensor] : file.tensors()) tensors[name] = tensor.clone();
    return tensors;
  }
  Tensor logits(const std::string& adapter, const recipe::Quant& quant = {}) const {
    return logits_of(load_classifier((directory_ / "experts").string(), (directory_ / adapter).string(),
                                     recipe::StorageType::Auto, recipe::StorageType::Float32, quant));
  }
  static Tensor logits_of(const Classifier& classifier) {
    return predict_logits(classifier, {{{2, 5, 9, 3}, {0, 0, 0, 0}, false}, {{2, 7, 3}, {0, 0, 0}, false}});
  }

  const std::string layer_ = "base_model.model.bert.encoder.layer.0.moe.";
};

TEST_F(ExpertAdapters, AreThoseOfLinearLayersOneByOne) {
  train("run");
  const auto tensors = adapter("run");
  // Query, four experts and the shared one, of two projections each, in three layers; and the head.
  EXPECT_EQ(tensors.size(), 3 * (1 + 2 * 5) * 2 + 2U);
  const Tensor A = tensors.at(layer_ + "experts.3.up_proj.lora_A.weight"),
               B = tensors.at(layer_ + "experts.3.down_proj.lora_B.weight");
  EXPECT_EQ(A.sizes(), at::IntArrayRef({2, 16}));
  EXPECT_EQ(B.sizes(), at::IntArrayRef({16, 2}));
  EXPECT_THAT(tensors, Contains(Key(layer_ + "shared_experts.up_proj.lora_A.weight")));
  double moved = 0;
  for (const auto& [name, tensor] : tensors) {
    if (name.find(".experts.") != std::string::npos && name.ends_with("lora_B.weight"))
      moved += tensor.abs().sum().item<double>();
  }
  EXPECT_GT(moved, 0);
}

TEST_F(ExpertAdapters, MergeIntoWhatTheyCompute) {
  train("run", {"output.merged=true"});
  const Tensor adapted = logits("run/adapter");
  // Two orders of the same sums.
  testing::expect_close(logits_of(load_classifier((directory_ / "run/model").string(), "")), adapted, 1e-5, 1e-5);
  const io::TensorFile base((directory_ / "experts/model.safetensors").string()),
      merged((directory_ / "run/model/model.safetensors").string());
  const std::string name = "bert.encoder.layer.0.moe.experts.up_proj";
  EXPECT_FALSE(at::equal(merged.tensor(name), base.tensor(name)));
}

TEST_F(ExpertAdapters, StopAndResumeToTheSameBits) {
  const std::vector<std::string> overrides = {"adapter.dropout=0.2", "training.checkpoint_every_steps=2",
                                              "training.activation_checkpointing=full"};
  train("straight", overrides);
  train("kept", {"adapter.dropout=0.2", "training.checkpoint_every_steps=2"});
  EXPECT_TRUE(adapter_bytes("kept") == adapter_bytes("straight")) << "activation checkpointing changes nothing";
  fs::copy(directory_ / "straight", directory_ / "cut", fs::copy_options::recursive);
  fs::remove_all(directory_ / "cut/adapter");
  fs::remove_all(directory_ / "cut/checkpoints/step-4");
  train("cut", overrides, /*resume=*/true);
  EXPECT_EQ(metrics("cut"), metrics("straight"));
  EXPECT_TRUE(adapter_bytes("cut") == adapter_bytes("straight"));
}

TEST_F(ExpertAdapters, TakeSomeExpertsWithRanksOfTheirOwnBesideATrainedRouter) {
  train("run", {"adapter.target_modules=[query, experts.1.up_proj, down_proj]", "adapter.modules_to_save=[gate]",
                "adapter.rank_pattern={'experts.2.down_proj': 5}", "model.moe.aux_loss_weight=0.1"});
  const auto tensors = adapter("run");
  EXPECT_THAT(tensors, Contains(Key(layer_ + "experts.1.up_proj.lora_A.weight")));
  EXPECT_THAT(tensors, Not(Contains(Key(layer_ + "experts.0.up_proj.lora_A.weight"))));
  EXPECT_EQ(tensors.at(layer_ + "experts.2.down_proj.lora_A.weight").size(0), 5);
  EXPECT_EQ(tensors.at(layer_ + "experts.3.down_proj.lora_A.weight").size(0), 2);
  const io::TensorFile base((directory_ / "experts/model.safetensors").string());
  EXPECT_FALSE(at::equal(tensors.at(layer_ + "gate.weight"), base.tensor("bert.encoder.layer.0.moe.gate.weight")));
  logits("run/adapter");
}

TEST_F(ExpertAdapters, TrainOverExpertsInFourBits) {
  for (const char* quant : {"quant={type: nf4}", "quant={type: nf4, double_quant: true, skip_modules: [down_proj]}"}) {
    const std::string run = "run" + std::to_string(std::string(quant).size());
    train(run, {quant});
    const recipe::Recipe resolved = recipe(run + "-again", {quant});
    const Tensor four = logits(run + "/adapter", resolved.quant);
    EXPECT_FALSE(at::equal(four, logits(run + "/adapter")));
    const auto classifier = load_classifier((directory_ / "experts").string(), (directory_ / run / "adapter").string(),
                                            recipe::StorageType::Auto, recipe::StorageType::Float32, resolved.quant);
    const auto banks = nn::expert_banks(*classifier.model);
    ASSERT_EQ(banks.size(), 3U);
    EXPECT_EQ(banks[0].second->four_bit_layers("up_proj").size(), 4U);
    EXPECT_EQ(banks[0].second->four_bit_layers("down_proj").empty(), resolved.quant.double_quant);
    // Each expert's codes are those of its own weight.
    const io::TensorFile base((directory_ / "experts/model.safetensors").string());
    nn::NF4Linear alone(16, 24, false, nn::NF4LinearOptions().double_quant(resolved.quant.double_quant));
    alone->quantize(base.tensor(banks[0].first + ".up_proj")[2]);
    EXPECT_TRUE(at::equal(banks[0].second->four_bit_layers("up_proj")[2]->weight, alone->weight));
    fs::create_directories(directory_ / (run + "-merged"));
    save_model(classifier, (directory_ / (run + "-merged")).string());
    testing::expect_close(logits_of(load_classifier((directory_ / (run + "-merged")).string(), "")), four, 1e-5, 1e-5);
  }
}

TEST_F(ExpertAdapters, DrawNewExpertsAlikeDenseAndInFourBits) {
  const std::vector<std::string> random = {"model.init=random", "training.max_steps=1"};
  const auto first_bank = [&](std::vector<std::string> overrides) {
    overrides.insert(overrides.end(), random.begin(), random.end());
    const recipe::Recipe given = recipe("unused", overrides);
    const Classifier classifier = build_classifier(given, recipe::resolve_model(given), {"0", "1"});
    return nn::expert_banks(*classifier.model)[0].second;
  };
  const auto dense = first_bank({}), four = first_bank({"quant={type: nf4}"});
  nn::NF4Linear alone(24, 16, false);
  alone->quantize(dense->down_weight.detach()[3]);
  EXPECT_TRUE(at::equal(four->four_bit_layers("down_proj")[3]->weight, alone->weight));
}

TEST_F(ExpertAdapters, RefuseAWeightThatFourBitsCannotHoldByNameAndPlace) {
  const std::string file = (directory_ / "experts/model.safetensors").string();
  io::NamedTensors tensors;
  for (const auto& [name, tensor] : io::TensorFile(file).tensors()) tensors.emplace_back(name, tensor.clone());
  for (auto& [name, tensor] : tensors) {
    if (name.ends_with("layer.1.moe.experts.up_proj")) tensor[2][3][5] = std::numeric_limits<float>::infinity();
  }
  io::write_safetensors(file, tensors);
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { train("run", {"quant={type: nf4}"}); }),
              HasSubstr("layer.1.moe.experts.up_proj[2][3, 5] is not finite"));
}

// What PEFT writes for target_parameters: A of all experts, B's columns by rank.
TEST_F(ExpertAdapters, StartFromPeftsTargetParameters) {
  io::NamedTensors tensors;
  double phase = 0;
  for (int layer = 0; layer < 3; ++layer) {
    const std::string bank = "base_model.model.bert.encoder.layer." + std::to_string(layer) + ".moe.experts.";
    tensors.emplace_back(bank + "lora_A.weight", testing::ramp({4 * 3, 24}, 0.3, phase += 0.1) * 0.2);
    tensors.emplace_back(bank + "lora_B.weight", testing::ramp({16, 3 * 4}, 0.3, phase += 0.1) * 0.2);
    tensors.emplace_back(bank + "base_layer.lora_A.weight", testing::ramp({4 * 3, 16}, 0.3, phase += 0.1) * 0.2);
    tensors.emplace_back(bank + "base_layer.lora_B.weight", testing::ramp({24, 3 * 4}, 0.3, phase += 0.1) * 0.2);
  }
  const std::string config = R"({"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 3, "lora_alpha": 6,
      "target_modules": [], "target_parameters": ["experts.up_proj", "experts.down_proj"])";
  directory_.write("peft/adapter_config.json", config + "}");
  io::write_safetensors((directory_ / "peft/adapter_model.safetensors").string(), tensors);
  const std::string recipe_text = R"(
model: {path: experts, task: classification, dropout: 0}
adapter: {type: lora, from: peft}
data: {train: train.jsonl, shuffle: false, labels: ["0", "1"]}
optimizer: {lr: 1e-9, schedule: constant, weight_decay: 0}
training: {max_steps: 1, batch_size: 8}
output: {dir: placeholder}
)";
  directory_.write("recipe.yaml", recipe_text);
  train("run");
  const auto again = adapter("run");
  EXPECT_EQ(again.size(), tensors.size() + 2);
  for (const auto& [name, tensor] : tensors) testing::expect_close(again.at(name), tensor, 0, 1e-7);
  EXPECT_THAT(formats::read_adapter_config((directory_ / "run/adapter").string()).target_parameters,
              ::testing::ElementsAre("experts.up_proj", "experts.down_proj"));
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { train("dropped", {"adapter.dropout=0.1"}); }),
              HasSubstr("adapter.dropout: has no meaning for the target_parameters of adapter.from"));
  directory_.write("peft/adapter_config.json", config + R"(, "lora_dropout": 0.1})");
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { train("dropped"); }),
              HasSubstr("lora_dropout: has no meaning for target_parameters"));
  directory_.write("peft/adapter_config.json",
                   R"({"peft_type": "LORA", "r": 3, "target_parameters": ["experts.gate_up_proj"]})");
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { train("unmatched"); }),
              HasSubstr("target_parameters: \"experts.gate_up_proj\" matches no tensor of experts in the model"));
}

}  // namespace
}  // namespace lathe::train
