#include "lathe/train/resume.h"

#include "expect_error.h"
#include "lathe/io/tensors.h"
#include "train/run_fixture.h"

namespace lathe::train {
namespace {

namespace fs = std::filesystem;
using testing::error_text;
using ::testing::HasSubstr;

class ResumeTest : public SmallBertRun {
 protected:
  Json summary() const { return read_json_file((directory_ / "run/run.json").string()); }
};

TEST_F(ResumeTest, PublishesAgainWhatIsOfAnEarlierStep) {
  const std::vector<std::string> longer = {"training.max_steps=12", "optimizer.schedule=constant"};
  train("straight", longer);
  train("run", {"optimizer.schedule=constant"});
  EXPECT_EQ(summary()["published"], Json::parse(R"({"step": 8, "weights_of_step": 8, "results": ["adapter"]})"));
  const std::string early = adapter_bytes("run"), early_summary = read_file(directory_ / "run/run.json", 1 << 20);
  train("run", longer, true);
  EXPECT_EQ(adapter_bytes("run"), adapter_bytes("straight"));
  // As if it had been killed after its last checkpoint: the results are those of step 8.
  directory_.write("run/adapter/adapter_model.safetensors", early);
  directory_.write("run/run.json", early_summary);
  train("run", longer, true);
  EXPECT_EQ(adapter_bytes("run"), adapter_bytes("straight"));
  EXPECT_FALSE(summary().contains("measured")) << "this process took no step";
}

TEST_F(ResumeTest, ResultsFollowTheRecipe) {
  train("run");
  train("run", {"output.merged=true"}, true);
  EXPECT_TRUE(fs::exists(directory_ / "run/model/model.safetensors"));
  train("run", {}, true);
  EXPECT_FALSE(fs::exists(directory_ / "run/model"));
  EXPECT_TRUE(fs::exists(directory_ / "run/adapter"));
}

TEST_F(ResumeTest, AnotherMeasureHasItsOwnBest) {
  const std::vector<std::string> common = {"training.eval_every_steps=1", "optimizer.lr=0.5",
                                           "optimizer.schedule=constant"};
  const auto with = [&](const std::string& more) {
    std::vector<std::string> overrides = common;
    if (!more.empty()) overrides.push_back(more);
    return overrides;
  };
  train("plain", common);
  train("run", with("training.keep_best={measure: eval_loss}"));
  const int64_t best = summary()["published"]["weights_of_step"];
  ASSERT_LT(best, 8);
  train("run", common, true);
  EXPECT_EQ(summary()["published"]["weights_of_step"], 8);
  EXPECT_EQ(adapter_bytes("run"), adapter_bytes("plain"));
}

TEST_F(ResumeTest, RefusesAnotherBaseModelOrEvaluation) {
  train("run", {"training.max_steps=4"});
  const fs::path weights = directory_ / "model/model.safetensors";
  const std::string bytes = read_file(weights, 1 << 24);
  std::string changed = bytes;
  changed.back() = static_cast<char>(changed.back() ^ 1);
  directory_.write("model/model.safetensors", changed);
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { train("run", {}, true); }),
              HasSubstr("the base model has changed since this checkpoint"));
  directory_.write("model/model.safetensors", bytes);
  train("run", {}, true);
}

TEST_F(ResumeTest, LeavesADirectoryAloneThatNoRunWrote) {
  for (const char* name : {"own/recipe.yaml", "own/metrics.jsonl", "own/notes.tmp-1"}) directory_.write(name, "mine\n");
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { train("own", {}, true); }), HasSubstr("holds no run"));
  for (const char* name : {"own/recipe.yaml", "own/metrics.jsonl", "own/notes.tmp-1"})
    EXPECT_EQ(read_file(directory_ / name, 100), "mine\n");
}

TEST_F(ResumeTest, NeverSavesWeightsThatAreNotFinite) {
  EXPECT_THAT(error_text(ErrorKind::Numeric,
                         [&] {
                           train("run", {"training.max_steps=1", "optimizer.lr=1e39", "optimizer.schedule=constant",
                                         "optimizer.num_warmup_steps=0"});
                         }),
              HasSubstr("is not finite after the update; no checkpoint of it is written"));
  EXPECT_FALSE(fs::exists(directory_ / "run/adapter"));
  EXPECT_FALSE(fs::exists(directory_ / "run/checkpoints"));
}

TEST(RunState, CountsAStepThatIsTakenAgainOnce) {
  RunState state;
  EXPECT_TRUE(state.note_nonfinite(5));
  EXPECT_TRUE(state.note_nonfinite(6));
  EXPECT_FALSE(state.note_nonfinite(7));
  EXPECT_FALSE(state.note_nonfinite(7)) << "a resumed run takes it again";
  EXPECT_EQ(state.nonfinite, (std::vector<int64_t>{5, 6, 7}));
}

// The plan holds for whole runs: with the checkpoints in between, and with the last one.
TEST_F(ResumeTest, WholeRunsTakeWhatWasPlanned) {
  int number = 0;
  for (const std::string more : {"", "training.keep_best={measure: eval_loss}", "training.checkpoint_every_steps=2"}) {
    const std::string run = "run-" + std::to_string(number++);
    std::vector<std::string> overrides = {"adapter={type: none}", "training.checkpoint_every_steps=0",
                                          "training.eval_every_steps=2", "model.max_length=13"};
    if (!more.empty()) overrides.push_back(more);
    train(run, overrides);
    const Json facts = read_json_file((directory_ / (run + "/run.json")).string());
    const double measured = facts["measured"]["peak_bytes"], planned = facts["planned"]["peak_bytes"];
    EXPECT_NEAR(measured / planned, 1, 0.05) << more;
  }
}

}  // namespace
}  // namespace lathe::train
