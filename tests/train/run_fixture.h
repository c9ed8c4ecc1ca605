#pragma once

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "lathe/base/files.h"
#include "lathe/train/step.h"
#include "lathe/train/trainer.h"
#include "small_bert.h"
#include "temporary_directory.h"

namespace lathe::train {

/// Runs of the recipe that a test writes as recipe.yaml, on one thread, and what they leave.
class RunFixture : public ::testing::Test {
 protected:
  RunFixture() { at::set_num_threads(1); }

  recipe::Recipe recipe(const std::string& run, std::vector<std::string> overrides = {}) const {
    overrides.push_back("output.dir=" + (directory_ / run).string());
    return recipe::load((directory_ / "recipe.yaml").string(), overrides);
  }
  void train(const std::string& run, const std::vector<std::string>& overrides = {}, bool resume = false) const {
    TrainObserver silent;
    lathe::train::train(recipe(run, overrides), resume, silent);
  }
  /// metrics.jsonl without what varies from run to run.
  std::vector<Json> metrics(const std::string& run) const {
    std::vector<Json> lines;
    std::istringstream stream(read_file(directory_ / (run + "/metrics.jsonl"), 1 << 20));
    for (std::string line; std::getline(stream, line);) {
      Json json = Json::parse(line);
      for (const char* varying : {"seconds", "tokens_per_second", "peak_rss_bytes"}) json.erase(varying);
      lines.push_back(std::move(json));
    }
    return lines;
  }
  std::string adapter_bytes(const std::string& run) const {
    return read_file(directory_ / (run + "/adapter/adapter_model.safetensors"), 1 << 24);
  }
  std::string model_bytes(const std::string& run) const {
    return read_file(directory_ / (run + "/model/model.safetensors"), 1 << 24);
  }

  testing::TemporaryDirectory directory_;
};

/// A run on a small model and 11 samples of different lengths.
class SmallBertRun : public RunFixture {
 protected:
  SmallBertRun() {
    testing::write_small_bert(directory_);
    std::string lines;
    for (int i = 0; i < 11; ++i) {
      std::string text;
      for (int j = 0; j <= i; ++j) text += std::string(1, static_cast<char>('a' + (i * 5 + j * 3) % 26)) + " ";
      lines += "{\"text\": \"" + text + "\", \"label\": \"" + (i % 3 == 0 ? "yes" : "no") + "\"}\n";
    }
    directory_.write("train.jsonl", lines);
    directory_.write("recipe.yaml", R"(
model: {path: model, task: classification}
adapter: {type: lora, rank: 2, alpha: 4, target_modules: [query, value], dropout: 0.1}
data: {train: train.jsonl, eval: train.jsonl}
optimizer: {lr: 0.01, schedule: linear, num_warmup_steps: 2}
training: {max_steps: 8, batch_size: 2, gradient_accumulation_steps: 2, seed: 3, checkpoint_every_steps: 3}
output: {dir: placeholder}
)");
  }
};

/// train.jsonl with eight texts of different lengths, and the window of all of them.
inline void write_eight_texts(const testing::TemporaryDirectory& directory) {
  std::string lines;
  for (int i = 0; i < 8; ++i) {
    std::string text;
    for (int j = 0; j <= 2 * i; ++j) text += std::string(1, static_cast<char>('a' + (i * 7 + j * 3) % 26)) + " ";
    lines += "{\"text\": \"" + text + "\", \"label\": " + std::to_string(i % 2) + "}\n";
  }
  directory.write("train.jsonl", lines);
}
inline const Window kEightTexts = {{0, 1, 2, 3, 4, 5, 6, 7}};

/// How one step over `window` changes each trained parameter: the value before less the value after.
inline std::vector<at::Tensor> update_of_step(Task& task, Stepper& stepper, const Window& window,
                                              StepMetrics& metrics) {
  std::vector<at::Tensor> update;
  for (const auto& [name, parameter] : task.trained_parameters()) update.push_back(parameter.detach().clone());
  EXPECT_EQ(stepper.run(0, window, metrics), StepOutcome::Done);
  size_t i = 0;
  for (const auto& [name, parameter] : task.trained_parameters()) update[i++].sub_(parameter.detach());
  return update;
}

inline double largest_difference(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, (a[i] - b[i]).abs().max().item<double>());
  return largest;
}

}  // namespace lathe::train
