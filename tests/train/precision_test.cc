#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include "lathe/train/classifier_task.h"
#include "lathe/train/step.h"
#include "lathe/train/trainer.h"
#include "small_bert.h"

namespace lathe::train {
namespace {

using testing::TemporaryDirectory;

constexpr int kNumSteps = 60;

class PrecisionTest : public ::testing::Test {
 protected:
  PrecisionTest() {
    at::set_num_threads(1);
    testing::write_small_bert(directory_);
    std::string lines;
    for (int i = 0; i < 12; ++i) {
      const std::string letter(1, static_cast<char>((i % 2 == 0 ? 'a' : 'n') + i));
      lines += "{\"text\": \"" + letter + " b " + letter + "\", \"label\": " + std::to_string(i % 2) + "}\n";
    }
    directory_.write("train.jsonl", lines);
    directory_.write("recipe.yaml", R"(
model: {path: model, task: classification, dropout: 0}
adapter: {type: none}
data: {train: train.jsonl, shuffle: false}
optimizer: {lr: 0.00004, schedule: constant, weight_decay: 0}
training: {max_steps: 60, batch_size: 12}
output: {dir: unused}
)");
  }

  recipe::Recipe recipe(std::vector<std::string> overrides) const {
    return recipe::load((directory_ / "recipe.yaml").string(), overrides);
  }

  struct Trained {
    double first_loss = 0, last_loss = 0;
    int64_t num_moved = 0;  // weights of matrices that differ from the start, as the products see them
  };

  // With `rounds`, every update is rounded to bfloat16: what training without masters does.
  Trained train_all(const std::string& dtype, bool rounds) const {
    const recipe::Recipe r = recipe({"model.dtype=" + dtype, "model.compute=float32"});
    const auto task = open_classifier_task(r);
    task->model().train();
    Stepper stepper(*task, r, kNumSteps);
    const auto parameters = task->trained_parameters();
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> start;
    for (const auto& [name, parameter] : parameters) start.push_back(parameter.to(at::kBFloat16));
    if (rounds) {
      for (const auto& [name, parameter] : parameters) at::Tensor(parameter).copy_(parameter.to(at::kBFloat16));
    }
    Trained result;
    for (int64_t step = 0; step < kNumSteps; ++step) {
      StepMetrics metrics;
      {
        const at::AutoGradMode grad(true);
        stepper.run(step, {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}}, metrics);
      }
      if (step == 0) result.first_loss = metrics.loss;
      result.last_loss = metrics.loss;
      for (const auto& [name, parameter] : parameters) {
        if (rounds) at::Tensor(parameter).copy_(parameter.to(at::kBFloat16));
      }
    }
    for (size_t i = 0; i < parameters.size(); ++i)
      result.num_moved += parameters[i].second.to(at::kBFloat16).ne(start[i]).sum().item<int64_t>();
    return result;
  }

  TemporaryDirectory directory_;
};

// Updates of 4e-5 are far below bfloat16's spacing (2⁻⁹ of a value): without float32 masters they are lost.
TEST_F(PrecisionTest, Bfloat16LearnsWithFloat32MastersOnly) {
  const Trained single = train_all("float32", false), masters = train_all("bfloat16", false),
                pure = train_all("bfloat16", true);
  const double learnt = single.first_loss - single.last_loss;
  EXPECT_GT(learnt, 0.004);
  EXPECT_NEAR(masters.first_loss - masters.last_loss, learnt, 0.2 * learnt);
  EXPECT_LT(pure.first_loss - pure.last_loss, 0.5 * learnt);
  EXPECT_LT(pure.num_moved, masters.num_moved / 2);
}

TEST_F(PrecisionTest, PublishesBfloat16MatricesThatGiveTheTrainedFunction) {
  TrainObserver silent;
  const std::string run = (directory_ / "run").string();
  lathe::train::train(recipe({"model.dtype=bfloat16", "optimizer.lr=0.01", "training.max_steps=5",
                              "data.eval=" + (directory_ / "train.jsonl").string(), "output.dir=" + run}),
                      false, silent);
  const io::TensorFile file(run + "/model/model.safetensors");
  EXPECT_EQ(file.tensor("bert.encoder.layer.0.attention.self.query.weight").scalar_type(), at::kBFloat16);
  EXPECT_EQ(file.tensor("bert.encoder.layer.0.attention.self.query.bias").scalar_type(), at::kFloat);
  EXPECT_EQ(read_json_file(run + "/model/config.json")["dtype"], "bfloat16");
  const recipe::Recipe trained =
      recipe({"model.path=" + run + "/model", "data.eval=" + (directory_ / "train.jsonl").string()});
  const auto task = open_classifier_task(trained);
  task->model().eval();
  const std::string metrics = read_file(run + "/metrics.jsonl", 1 << 20);
  const Json last = Json::parse(metrics.substr(metrics.rfind('\n', metrics.size() - 2) + 1));
  EXPECT_EQ(task->evaluate({}).eval_loss, last["eval_loss"].get<double>());
}

TEST_F(PrecisionTest, TrainsAFloat32AdapterOnABfloat16Base) {
  const recipe::Recipe r = recipe({"model.dtype=bfloat16", "adapter={type: lora, rank: 2, alpha: 4}"});
  const auto task = open_classifier_task(r);
  for (const auto& [name, parameter] : task->trained_parameters()) EXPECT_EQ(parameter.scalar_type(), at::kFloat);
  for (const auto& item : task->model().named_parameters()) {
    const bool frozen_matrix = !item.value().requires_grad() && item.value().dim() == 2;
    EXPECT_EQ(item.value().scalar_type(), frozen_matrix ? at::kBFloat16 : at::kFloat) << item.key();
  }
  task->model().train();
  Stepper stepper(*task, r, kNumSteps);
  StepMetrics metrics;
  EXPECT_EQ(stepper.run(0, {{0, 1, 2}}, metrics), StepOutcome::Done);
  EXPECT_TRUE(stepper.without_gradient().empty());
}

}  // namespace
}  // namespace lathe::train
