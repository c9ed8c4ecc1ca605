#include "lathe/train/balance.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>

#include <filesystem>
#include <sstream>

#include "lathe/base/files.h"
#include "lathe/models/load.h"
#include "lathe/models/upcycle.h"
#include "lathe/train/classifier.h"
#include "lathe/train/classifier_task.h"
#include "lathe/train/run_state.h"
#include "lathe/train/step.h"
#include "lathe/train/trainer.h"
#include "small_bert.h"

namespace lathe::train {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryDirectory;
namespace fs = std::filesystem;

// A small BERT with four experts in the place of each MLP, and eight samples of different lengths.
class BalanceTest : public ::testing::Test {
 protected:
  BalanceTest() {
    at::set_num_threads(1);
    testing::write_small_bert(directory_);
    std::string lines;
    for (int i = 0; i < 8; ++i) {
      std::string text;
      for (int j = 0; j <= 2 * i; ++j) text += std::string(1, static_cast<char>('a' + (i * 7 + j * 3) % 26)) + " ";
      lines += "{\"text\": \"" + text + "\", \"label\": " + std::to_string(i % 2) + "}\n";
    }
    directory_.write("train.jsonl", lines);
    directory_.write("recipe.yaml", R"(
model: {path: model, task: classification, init: random, dropout: 0, moe: {num_experts: 4, top_k: 2, aux_loss_weight: 0.1, z_loss_weight: 0.01, bias_update_rate: 0.01}}
adapter: {type: none}
data: {train: train.jsonl, shuffle: false, labels: ["0", "1"]}
optimizer: {type: sgd, lr: 1, schedule: constant, weight_decay: 0, clip_grad_norm: 0}
training: {max_steps: 1, batch_size: 8, seed: 5}
output: {dir: unused}
)");
  }

  recipe::Recipe recipe(std::vector<std::string> overrides = {}) const {
    return recipe::load((directory_ / "recipe.yaml").string(), overrides);
  }

  struct Result {
    StepMetrics metrics;
    std::vector<at::Tensor> update, biases;
  };
  // One step over `window`; in float64 if so wanted.
  Result step(const Window& window, const std::vector<std::string>& overrides, bool as_double) const {
    const recipe::Recipe given = recipe(overrides);
    const auto task = open_classifier_task(given);
    if (as_double) {
      for (auto& item : task->model().named_parameters()) item.value().set_data(item.value().detach().to(at::kDouble));
    }
    task->model().train();
    Stepper stepper(*task, given, 1);
    const auto parameters = task->trained_parameters();
    std::vector<at::Tensor> before;
    for (const auto& [name, parameter] : parameters) before.push_back(parameter.detach().clone());
    Result result;
    EXPECT_EQ(stepper.run(0, window, result.metrics), StepOutcome::Done);
    for (size_t i = 0; i < parameters.size(); ++i) result.update.push_back(before[i] - parameters[i].second.detach());
    for (const auto& [name, bias] : models::selection_biases(task->model())) result.biases.push_back(bias.clone());
    return result;
  }

  void train(const std::string& run, std::vector<std::string> overrides, bool resume = false) {
    overrides.push_back("output.dir=" + (directory_ / run).string());
    TrainObserver silent;
    lathe::train::train(recipe(overrides), resume, silent);
  }
  std::vector<Json> lines_of(const std::string& run) const {
    std::vector<Json> lines;
    std::istringstream stream(read_file(directory_ / (run + "/metrics.jsonl"), 1 << 20));
    for (std::string line; std::getline(stream, line);) {
      Json json = Json::parse(line);
      for (const char* varying : {"seconds", "tokens_per_second", "peak_rss_bytes"}) json.erase(varying);
      lines.push_back(std::move(json));
    }
    return lines;
  }

  TemporaryDirectory directory_;
};

const Window kWhole = {{0, 1, 2, 3, 4, 5, 6, 7}};

double largest_difference(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, (a[i] - b[i]).abs().max().item<double>());
  return largest;
}

TEST_F(BalanceTest, IsThatOfTheWindowForEverySplit) {
  const Result whole = step(kWhole, {}, /*as_double=*/true);
  ASSERT_EQ(whole.metrics.balance->load.size(), 3U) << "one mixture in each layer";
  EXPECT_GT(whole.metrics.balance->loss, 0);
  const Result without = step(kWhole, {"model.moe.aux_loss_weight=0", "model.moe.z_loss_weight=0"}, true);
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
  EXPECT_GT(kept.metrics.balance->dropped, 0);
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
  EXPECT_EQ(lines_of("cut"), lines_of("straight"));
  const auto bytes = [&](const char* run) { return read_file(directory_ / run / "model/model.safetensors", 1 << 24); };
  EXPECT_EQ(bytes("cut"), bytes("straight"));
  EXPECT_TRUE(lines_of("straight").front().contains("moe_entropy"));
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
      recipe::resolve_model(recipe(overrides));
    } catch (const Error& failure) {
      return std::string(failure.what());
    }
    return std::string();
  };
  EXPECT_EQ(error("model.moe.aux_loss_weight=0.5"), "");
  EXPECT_THAT(error("model.moe.num_experts=8"), HasSubstr("model.moe.num_experts: differs from the checkpoint's"));
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
  lathe::train::train(recipe({"model.path=" + (directory_ / "upcycled").string(), "model.init=checkpoint", "~model.moe",
                              "model.moe.aux_loss_weight=0", "training.max_steps=12", "optimizer.lr=1e-6",
                              "output.dir=" + (directory_ / "collapsed").string()}),
                      false, listener);
  ASSERT_EQ(listener.warnings.size(), 1U);
  EXPECT_THAT(listener.warnings[0], HasSubstr("step 10: routing collapses in expert layer 0: 2 of 4 experts are dead"));
  EXPECT_THAT(listener.warnings[0], HasSubstr("raise model.moe.aux_loss_weight"));
}

}  // namespace
}  // namespace lathe::train
