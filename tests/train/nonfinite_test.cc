#include "expect_error.h"
#include "lathe/train/run_state.h"
#include "train/run_fixture.h"

namespace lathe::train {
namespace {

using testing::error_text;
using ::testing::HasSubstr;

namespace fs = std::filesystem;

class NonFiniteTest : public SmallBertRun {
 protected:
  // Trains, then goes back to step 3 with other weights.
  void rewind_to_step_3(const std::vector<std::string>& overrides, const std::function<void(Snapshot&)>& change) const {
    train("run", overrides);
    for (int step = 4; step <= 8; ++step) fs::remove_all(directory_ / ("run/checkpoints/step-" + std::to_string(step)));
    fs::remove_all(directory_ / "run/adapter");
    const fs::path checkpoint = directory_ / "run/checkpoints/step-3";
    Snapshot snapshot = Snapshot::read(checkpoint);
    change(snapshot);
    fs::rename(checkpoint, directory_ / "aside");
    RunDirectory((directory_ / "run").string(), true).publish_checkpoint(3, [&](const auto& path) {
      snapshot.write(path);
    });
  }
};

TEST_F(NonFiniteTest, StopsOnANonFiniteLossWithADump) {
  const std::string text = error_text(ErrorKind::Numeric, [&] {
    train("run", {"optimizer.lr=1e30", "optimizer.clip_grad_norm=0", "optimizer.num_warmup_steps=0"});
  });
  EXPECT_THAT(text, HasSubstr("step 2: the loss is not finite, first in bert.encoder.layer.0"));
  EXPECT_FALSE(fs::exists(directory_ / "run/adapter"));
  const Json dump = read_json_file((directory_ / "run/nonfinite-step-2.json").string());
  EXPECT_EQ(dump["first_nonfinite"], "bert.encoder.layer.0");
  ASSERT_EQ(dump["micro_batches"].size(), 2u);
  const Json& sample = dump["micro_batches"][0][0];
  EXPECT_THAT(sample["file"].get<std::string>(), HasSubstr("train.jsonl"));
  EXPECT_GE(sample["line"].get<int>(), 1);
  EXPECT_GE(sample["input_ids"].size(), 3u);
}

// A checkpoint whose weights hold a NaN makes every later step non-finite.
TEST_F(NonFiniteTest, LeavesStepsOutButNotForEver) {
  const std::vector<std::string> overrides = {"training.on_nonfinite=skip", "training.checkpoint_every_steps=3",
                                              "training.keep_checkpoints=8"};
  rewind_to_step_3(overrides, [](Snapshot& snapshot) { snapshot.weights.front().second.fill_(NAN); });
  const std::string text = error_text(ErrorKind::Numeric, [&] { train("run", overrides, true); });
  EXPECT_THAT(text, HasSubstr("step 6: the loss is not finite, first in parameter "));
  const auto lines = metrics("run");
  EXPECT_TRUE(lines.back()["loss"].is_null()) << "steps 4 and 5 are in the metrics, left out";
  EXPECT_EQ(lines.back()["step"], 5);
}

// B is zero, so that a huge A does not change the output, but B's gradient overflows. One sample in three has a label
// that the head gets wrong by far.
TEST_F(NonFiniteTest, LeavesTheWeightsAloneWhenOnlyTheGradientIsNotFinite) {
  const std::vector<std::string> overrides = {"training.on_nonfinite=skip", "training.checkpoint_every_steps=1",
                                              "training.keep_checkpoints=8"};
  rewind_to_step_3(overrides, [](Snapshot& snapshot) {
    for (auto& [name, tensor] : snapshot.weights) {
      if (name.ends_with("lora_A.weight")) tensor.fill_(1e37);
      if (name.ends_with("lora_B.weight")) tensor.zero_();
      if (name == "classifier.weight") tensor.mul_(1e15);
    }
  });
  train("run", overrides, true);
  Json step_4;
  for (const Json& line : metrics("run")) {
    if (line["step"] == 4) step_4 = line;
  }
  EXPECT_TRUE(step_4["grad_norm"].is_null());
  EXPECT_TRUE(step_4["loss"].is_number());
  const Snapshot before = Snapshot::read(directory_ / "run/checkpoints/step-3"),
                 after = Snapshot::read(directory_ / "run/checkpoints/step-4");
  EXPECT_EQ(after.state.nonfinite, std::vector<int64_t>{4});
  for (size_t i = 0; i < before.weights.size(); ++i)
    testing::expect_identical(after.weights[i].second, before.weights[i].second);
  for (size_t i = 0; i < before.optimizer.size(); ++i)
    testing::expect_identical(after.optimizer[i].second, before.optimizer[i].second);
}

TEST(NoteEvaluation, KeepsTheBestThatIsFinite) {
  std::optional<Best> best;
  EXPECT_FALSE(note_evaluation(best, recipe::Measure::EvalLoss, NAN, 1));
  EXPECT_FALSE(best);
  EXPECT_TRUE(note_evaluation(best, recipe::Measure::EvalLoss, 2, 2));
  EXPECT_FALSE(note_evaluation(best, recipe::Measure::EvalLoss, NAN, 3));
  EXPECT_FALSE(note_evaluation(best, recipe::Measure::EvalLoss, 2, 4));
  EXPECT_EQ(best->evaluations_since, 2);
  EXPECT_TRUE(note_evaluation(best, recipe::Measure::EvalLoss, 1, 5));
  EXPECT_EQ(best->step, 5);
  EXPECT_EQ(best->evaluations_since, 0);
}

}  // namespace
}  // namespace lathe::train
