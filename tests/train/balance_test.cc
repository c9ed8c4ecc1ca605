#include "lathe/train/balance.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "lathe/models/load.h"
#include "lathe/models/upcycle.h"
#include "lathe/train/classifier.h"
#include "lathe/train/classifier_task.h"
#include "lathe/train/run_state.h"
#include "small_bert.h"
#include "train/run_fixture.h"

namespace lathe::train {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

// A small BERT with four experts in the place of each MLP, and eight samples of different lengths.
class BalanceTest : public RunFixture {
 protected:
  BalanceTest() {
    testing::write_small_bert(directory_);
    write_eight_texts(directory_);
    directory_.write("recipe.yaml", R"(
model: {path: model, task: classification, init: random, dropout: 0, moe: {num_experts: 4, top_k: 2, aux_loss_weight: 0.1, z_loss_weight: 0.01, bias_update_rate: 0.01}}
adapter: {type: none}
data: {train: train.jsonl, shuffle: false, labels: ["0", "1"]}
optimizer: {type: sgd, lr: 1, schedule: constant, weight_decay: 0, clip_grad_norm: 0}
training: {max_steps: 1, batch_size: 8, seed: 5}
output: {dir: unused}
)");
  }

  struct Result {
    StepMetrics metrics;
    std::vector<at::Tensor> update, biases;
  };
  // One step over `window`; in float64 if so wanted.
  Result step(const Window& window, const std::vector<std::string>& overrides, bool as_double) const {
    const recipe::Recipe given = recipe("unused", overrides);
    const auto task = open_classifier_task(given);
    if (as_double) {
      for (auto& item : task->model().named_parameters()) item.value().set_data(item.value().detach().to(at::kDouble));
    }
    task->model().train();
    Stepper stepper(*task, given, 1);
    Result result;
    result.update = update_of_step(*task, stepper, window, result.metrics);
    for (const auto& [name, bias] : models::selection_biases(task->model())) result.biases.push_back(bias.clone());
    return result;
  }
};

TEST_F(BalanceTest, IsThatOfTheWindowForEverySplit) {
  const Result whole = step(kEightTexts, {}, /*as_double=*/true);
  ASSERT_EQ(whole.metrics.balance->load.size(), 3U) << "one mixture in each layer";
  EXPECT_GT(whole.metrics.balance->loss, 0);
  const Result without = step(kEightTexts, {"model.moe.aux_loss_weight=0", "model.moe.z_loss_weight=0"}, true);
  EXPECT_GT(largest_difference(whole.update, without.update), 1e-4) << "the balance terms reach the gradient";
  for (const Window& split : {Window{{0, 1}, {2, 3}, {4, 5}, {6, 7}}, Window{{0, 1, 2, 3, 4}, {5, 6, 7}}}) {
    const Result parts = step(split, {}, true);
    EXPECT_EQ(parts.metrics.balance->load, whole.metrics.balance->load);
    EXPECT_NEAR(parts.metrics.balance->loss, whole.metrics.balance->loss, 1e-12);
    EXPECT_NEAR(parts.metrics.loss, whole.metrics.loss, 1e-12);
    EXPECT_EQ(largest_difference(parts.biases, whole.biases), 0);
    EXPECT_LT(largest_difference(parts.update, whole.update), 1e-12);
  }
}

TEST_F(BalanceTest, MovesEachBiasOnceAStep) {
  const Result result = step({{0, 1, 2, 3}, {4, 5, 6, 7}}, {}, false);
  ASSERT_EQ(result.biases.size(), 3U);
  for (size_t layer = 0; layer < 3; ++layer) {
    for (int64_t e = 0; e < 4; ++e) {
      const double share = result.metrics.balance->load[layer][static_cast<size_t>(e)];
      const double expected = share < 0.25 ? 0.01 : share > 0.25 ? -0.01 : 0;
      EXPECT_FLOAT_EQ(result.biases[layer][e].item<float>(), static_cast<float>(expected));
    }
  }
}

TEST_F(BalanceTest, IsTheSameUnderActivationCheckpointing) {
  const Window window = {{0, 1, 2, 3}, {4, 5, 6, 7}};
  const std::vector<std::string> noisy = {"model.dropout=0.1", "model.moe.jitter=0.1", "model.moe.capacity_factor=1"};
  const Result kept = step(window, noisy, false);
  EXPECT_GT(kept.metrics.balance->dropped.at(0), 0);
  for (const char* policy : {"full", "{every: 2}", "elementwise"}) {
    std::vector<std::string> overrides = noisy;
    overrides.push_back(std::string("training.activation_checkpointing=") + policy);
    const Result again = step(window, overrides, false);
    EXPECT_EQ(again.metrics.balance->to_json(), kept.metrics.balance->to_json()) << policy;
    EXPECT_EQ(largest_difference(again.biases, kept.biases), 0) << policy;
    EXPECT_EQ(largest_difference(again.update, kept.update), 0) << policy;
  }
}

TEST_F(BalanceTest, ResumesToTheSameBits) {
  const std::vector<std::string> overrides = {"training.max_steps=6", "training.batch_size=2",
                                              "training.gradient_accumulation_steps=2", "optimizer.lr=0.05",
                                              "training.checkpoint_every_steps=4"};
  train("straight", overrides);
  fs::copy(directory_ / "straight", directory_ / "cut", fs::copy_options::recursive);
  fs::remove_all(directory_ / "cut/model");
  fs::remove_all(directory_ / "cut/checkpoints/step-6");
  const Snapshot snapshot = Snapshot::read(directory_ / "cut/checkpoints/step-4");
  double moved = 0;
  for (const auto& [name, tensor] : snapshot.weights) {
    if (name.ends_with("e_score_correction_bias")) moved += tensor.abs().sum().item<double>();
  }
  EXPECT_GT(moved, 0) << "the biases are in the checkpoint";
  train("cut", overrides, /*resume=*/true);
  EXPECT_EQ(metrics("cut"), metrics("straight"));
  const auto bytes = [&](const char* run) { return read_file(directory_ / run / "model/model.safetensors", 1 << 24); };
  EXPECT_EQ(bytes("cut"), bytes("straight"));
  EXPECT_TRUE(metrics("straight").front().contains("moe_entropy"));
}

TEST_F(BalanceTest, PublishesAModelThatOpensWithItsExperts) {
  train("run", {"training.max_steps=3", "optimizer.lr=0.05"});
  const std::string model = (directory_ / "run/model").string();
  const Classifier classifier = load_classifier(model, "");
  ASSERT_TRUE(arch::mlp_experts(classifier.arch));
  EXPECT_EQ(arch::mlp_experts(classifier.arch)->num_experts, 4);
  const io::TensorFile file(model + "/model.safetensors");
  double moved = 0;
  for (const auto& [name, bias] : models::selection_biases(*classifier.model)) {
    EXPECT_TRUE(bias.equal(file.tensor(name))) << name;
    moved += bias.abs().sum().item<double>();
  }
  EXPECT_GT(moved, 0);
  // Trained further: the checkpoint decides what it is, the recipe how it is balanced.
  const std::vector<std::string> further = {"model.path=" + model, "model.init=checkpoint"};
  const auto error = [&](const std::string& override) {
    std::vector<std::string> overrides = further;
    overrides.push_back(override);
    try {
      recipe::resolve_model(recipe("unused", overrides));
    } catch (const Error& failure) {
      return std::string(failure.what());
    }
    return std::string();
  };
  EXPECT_EQ(error("model.moe.aux_loss_weight=0.5"), "");
  for (const char* shape : {"num_experts=8", "top_k=1", "router=random", "renormalise=false", "shared_experts=1"}) {
    const std::string key = std::string("model.moe.") + shape;
    EXPECT_THAT(error(key), HasSubstr(key.substr(0, key.find('=')) + ": differs from the checkpoint's"));
  }
  const std::string dense = (directory_ / "model").string();
  EXPECT_THAT(error("model.path=" + dense), HasSubstr("model.moe: needs a checkpoint with experts"));
}

TEST_F(BalanceTest, WarnsOfCollapseOnceWithTheKnobToTurn) {
  // Routers of zeros: every tie goes to the first two experts.
  formats::ModelDirectory dense = formats::ModelDirectory::open((directory_ / "model").string());
  arch::MlpExperts experts;
  experts.num_experts = 4;
  fs::create_directory(directory_ / "upcycled");
  models::upcycle(dense, experts, 0, directory_ / "upcycled");
  const std::string file = (directory_ / "upcycled/model.safetensors").string();
  io::NamedTensors tensors;
  for (const auto& [name, tensor] : io::TensorFile(file).tensors())
    tensors.emplace_back(name, name.ends_with("gate.weight") ? at::zeros_like(tensor) : tensor.clone());
  io::write_safetensors(file, tensors);
  struct Listener : TrainObserver {
    std::vector<std::string> warnings;
    void on_warning(const std::string& text) override { warnings.push_back(text); }
  } listener;
  lathe::train::train(
      recipe("collapsed", {"model.path=" + (directory_ / "upcycled").string(), "model.init=checkpoint", "~model.moe",
                           "model.moe.aux_loss_weight=0", "training.max_steps=12", "optimizer.lr=1e-6"}),
      false, listener);
  ASSERT_EQ(listener.warnings.size(), 1U);
  EXPECT_THAT(listener.warnings[0], HasSubstr("step 10: routing collapses in expert layer 0: 2 of 4 experts are dead"));
  EXPECT_THAT(listener.warnings[0], HasSubstr("raise model.moe.aux_loss_weight"));
}

}  // namespace
}  // namespace lathe::train
