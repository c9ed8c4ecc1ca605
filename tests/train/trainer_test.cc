#include "lathe/train/trainer.h"

#include <ATen/Parallel.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "expect_error.h"
#include "lathe/base/files.h"
#include "lathe/cost/plan.h"
#include "lathe/nn/gemm.h"
#include "lathe/train/classifier.h"
#include "lathe/train/run_state.h"
#include "lathe/train/signals.h"
#include "small_bert.h"
#include "train/run_fixture.h"

namespace lathe::train {
namespace {

using ::testing::ElementsAre;
using testing::error_text;
using testing::expect_identical;
using ::testing::HasSubstr;

namespace fs = std::filesystem;

using TrainerTest = SmallBertRun;

TEST_F(TrainerTest, WritesEveryKeyOfAStepAndAnEvaluation) {
  train("run");
  const auto lines = metrics("run");
  ASSERT_EQ(lines.size(), 11u) << "8 steps, evaluations after epochs of 3 steps and at the end";
  std::vector<std::string> keys;
  for (const auto& [key, value] : lines[0].items()) keys.push_back(key);
  EXPECT_THAT(keys, ElementsAre("step", "epoch", "loss", "lr", "grad_norm", "tokens"));
  EXPECT_EQ(lines[0]["lr"], 0);
  EXPECT_EQ(lines[1]["lr"], 0.005);
  EXPECT_DOUBLE_EQ(lines[0]["epoch"].get<double>(), 4.0 / 11);
  EXPECT_EQ(lines[3]["step"], 3);
  EXPECT_TRUE(lines[3].contains("eval_loss") && lines[3].contains("accuracy") && lines[3].contains("f1"));
  int64_t tokens = 0;
  for (const size_t step : {0u, 1u, 2u}) tokens += lines[step]["tokens"].get<int64_t>();
  EXPECT_EQ(tokens, 66 + 2 * 11) << "1 + 2 + ... + 11 letters and two special tokens each";
}

TEST_F(TrainerTest, LearnsTheTrainingData) {
  train("run", {"training.max_steps=120", "optimizer.schedule=constant", "adapter.dropout=0", "model.dropout=0",
                "training.checkpoint_every_steps=0"});
  const auto lines = metrics("run");
  EXPECT_LT(lines.back()["eval_loss"].get<double>(), 0.3);
  EXPECT_EQ(lines.back()["accuracy"].get<double>(), 1.0);
}

TEST_F(TrainerTest, GivesTheSameBitsTwiceAndOthersForAnotherSeed) {
  train("a");
  train("b");
  train("c", {"training.seed=4"});
  EXPECT_EQ(metrics("a"), metrics("b"));
  EXPECT_EQ(adapter_bytes("a"), adapter_bytes("b"));
  EXPECT_NE(adapter_bytes("a"), adapter_bytes("c"));
}

TEST_F(TrainerTest, ResumesToTheSameBits) {
  train("straight");
  // The same run, cut back to its checkpoint before the last.
  fs::copy(directory_ / "straight", directory_ / "cut", fs::copy_options::recursive);
  fs::remove_all(directory_ / "cut/adapter");
  fs::remove_all(directory_ / "cut/checkpoints/step-8");
  train("cut", {}, /*resume=*/true);
  EXPECT_EQ(metrics("cut"), metrics("straight"));
  EXPECT_EQ(adapter_bytes("cut"), adapter_bytes("straight"));
}

TEST_F(TrainerTest, ChoosesTheBatchByThePlanAndKeepsItOnResume) {
  const std::vector<std::string> automatic = {"training.batch_size=auto", "training.global_batch_size=4",
                                              "~training.gradient_accumulation_steps"};
  train("auto", automatic);
  train("four", {"training.batch_size=4", "training.gradient_accumulation_steps=1"});
  EXPECT_EQ(metrics("auto"), metrics("four"));
  fs::remove_all(directory_ / "auto/adapter");
  fs::remove_all(directory_ / "auto/checkpoints/step-8");
  train("auto", automatic, /*resume=*/true);
  EXPECT_EQ(adapter_bytes("auto"), adapter_bytes("four"));
}

TEST_F(TrainerTest, RecordsThePlannedAndTheMeasuredPeak) {
  train("run", {"training.activation_checkpointing={budget: 1 GiB}"});
  const Json summary = Json::parse(read_file(directory_ / "run/run.json", 1 << 20));
  EXPECT_GT(summary["planned"]["peak_bytes"].get<int64_t>(), 0);
  const Json& measured = summary["measured"];
  EXPECT_GT(measured["peak_bytes"].get<int64_t>(), 0);
  for (const char* resident : {"base_bytes", "peak_rss_bytes"})
    EXPECT_GT(measured[resident].get<int64_t>(), int64_t{20} << 20) << "LibTorch alone is more: " << resident;
  const Json& overheads = summary["overheads"];
  for (const char* cost : {"metrics_cpu_seconds", "checkpoints_cpu_seconds", "checkpoint_stall_seconds"})
    EXPECT_GT(overheads[cost].get<double>(), 0) << cost;
  EXPECT_LT(overheads["metrics_cpu_seconds"].get<double>() + overheads["checkpoints_cpu_seconds"].get<double>(),
            overheads["process_cpu_seconds"].get<double>());
  EXPECT_THAT(summary["environment"]["bits decided by"].get<std::string>(), HasSubstr("LibTorch 2."));
  EXPECT_TRUE(summary["environment"].contains("processor"));
}

TEST_F(TrainerTest, PassesOverADamagedCheckpointLoudly) {
  train("run");
  const std::string bytes = adapter_bytes("run");
  std::string weights = read_file(directory_ / "run/checkpoints/step-8/trainable.safetensors", 1 << 24);
  weights.back() = static_cast<char>(weights.back() ^ 1);
  directory_.write("run/checkpoints/step-8/trainable.safetensors", weights);
  fs::remove_all(directory_ / "run/adapter");
  struct Warnings : TrainObserver {
    std::vector<std::string> texts;
    int64_t first_step = -1;
    void on_start(int64_t first, int64_t) override { first_step = first; }
    void on_warning(const std::string& text) override { texts.push_back(text); }
  } observer;
  lathe::train::train(recipe("run"), true, observer);
  EXPECT_EQ(observer.first_step, 6);
  ASSERT_EQ(observer.texts.size(), 1u);
  EXPECT_THAT(observer.texts[0], HasSubstr("step-8: damaged, using the one before"));
  EXPECT_EQ(adapter_bytes("run"), bytes);
}

TEST_F(TrainerTest, KeepsTheNewestCheckpointsOnly) {
  train("run");
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory_ / "run/checkpoints"))
    names.insert(entry.path().filename().string());
  EXPECT_THAT(names, ElementsAre("step-6", "step-8"));
}

TEST_F(TrainerTest, GivesTheSameLossForEverySplitOfAWindow) {
  const std::vector<std::string> off = {"model.dropout=0", "adapter.dropout=0", "data.shuffle=false",
                                        "training.max_steps=3"};
  const auto losses = [&](const std::string& run, const std::string& batch, const std::string& accumulation) {
    auto overrides = off;
    overrides.push_back("training.batch_size=" + batch);
    overrides.push_back("training.gradient_accumulation_steps=" + accumulation);
    train(run, overrides);
    std::vector<double> values;
    for (const Json& line : metrics(run)) {
      if (line.contains("loss")) values.push_back(line["loss"].get<double>());
    }
    return values;
  };
  const auto whole = losses("a", "8", "1"), halves = losses("b", "4", "2"), singles = losses("c", "1", "8");
  for (size_t i = 0; i < whole.size(); ++i) {
    // Three updates of float32 sums in another order.
    EXPECT_NEAR(halves[i], whole[i], 2e-5 * whole[i]);
    EXPECT_NEAR(singles[i], whole[i], 2e-5 * whole[i]);
  }
}

TEST_F(TrainerTest, RefusesAUsedDirectoryAndAChangedRecipeOrData) {
  train("run");
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { train("run"); }),
              HasSubstr("output.dir: is not empty (--resume continues that run"));
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { train("run", {"optimizer.lr=0.5"}, true); }),
              HasSubstr("optimizer.lr: differs from the run that is being resumed"));
  directory_.write("train.jsonl", "{\"text\": \"a\", \"label\": \"no\"}\n{\"text\": \"b\", \"label\": \"yes\"}\n");
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { train("run", {}, true); }),
              HasSubstr("data has changed since this checkpoint"));
}

TEST_F(TrainerTest, MakesNoDirectoryWhenSomethingIsWrongBefore) {
  directory_.write("train.jsonl", "{\"text\": 5}\n");
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { train("run"); }),
              HasSubstr("train.jsonl:1: text: expected a string, got 5"));
  EXPECT_FALSE(fs::exists(directory_ / "run"));
}

TEST_F(TrainerTest, FineTunesEveryWeightIntoAModelDirectory) {
  train("run", {"adapter={type: none}"});
  const Classifier trained = load_classifier((directory_ / "run/model").string(), "");
  EXPECT_THAT(trained.labels, ElementsAre("no", "yes"));
  const auto original = io::TensorFile((directory_ / "model/model.safetensors").string()),
             written = io::TensorFile((directory_ / "run/model/model.safetensors").string());
  EXPECT_EQ(written.tensors().size(), original.tensors().size() + 2);
  EXPECT_FALSE(at::equal(written.tensor("bert.embeddings.word_embeddings.weight"),
                         original.tensor("bert.embeddings.word_embeddings.weight")));
}

TEST_F(TrainerTest, MergedModelGivesTheAdaptersLogits) {
  train("run", {"output.merged=true"});
  const Classifier adapted = load_classifier((directory_ / "model").string(), (directory_ / "run/adapter").string());
  const Classifier merged = load_classifier((directory_ / "run/model").string(), "");
  EXPECT_EQ(merged.labels, adapted.labels);
  const std::vector<text::Encoding> encodings = {{{2, 5, 9, 3}, {0, 0, 0, 0}, false}};
  testing::expect_close(predict_logits(merged, encodings), predict_logits(adapted, encodings), 1e-5, 1e-6);
}

TEST_F(TrainerTest, TrainsOnFourBitsAndResumesToTheSameBits) {
  for (const std::string quant : {"quant={type: nf4, double_quant: true}", "quant={type: fp4, blocksize: 32}"}) {
    const std::string run = "run-" + quant.substr(13, 3);
    const std::string steady = "optimizer.schedule=constant";
    train(run, {quant, steady, "output.merged=true"});
    train(run + "-resumed", {quant, steady, "training.max_steps=5"});
    train(run + "-resumed", {quant, steady}, /*resume=*/true);
    EXPECT_TRUE(adapter_bytes(run + "-resumed") == adapter_bytes(run));
    // The merged model is the dequantised base with the update: the adapter on four bits gives its logits.
    const recipe::Recipe r = recipe(run, {quant});
    const Classifier adapted =
        load_classifier((directory_ / "model").string(), (directory_ / (run + "/adapter")).string(), r.model.dtype,
                        r.model.compute, r.quant);
    const Classifier dense =
        load_classifier((directory_ / "model").string(), (directory_ / (run + "/adapter")).string());
    const Classifier merged = load_classifier((directory_ / (run + "/model")).string(), "");
    const std::vector<text::Encoding> encodings = {{{2, 5, 9, 3}, {0, 0, 0, 0}, false}};
    const Tensor logits = predict_logits(adapted, encodings);
    testing::expect_close(predict_logits(merged, encodings), logits, 1e-5, 1e-6);
    EXPECT_GT((predict_logits(dense, encodings) - logits).abs().max().item<float>(), 1e-4f);
  }
}

TEST_F(TrainerTest, RefusesToQuantiseWhatIsNotFinite) {
  const std::string file = (directory_ / "model/model.safetensors").string();
  io::NamedTensors tensors = io::TensorFile(file).tensors();
  for (auto& [name, tensor] : tensors) {
    if (name == "bert.encoder.layer.1.output.dense.weight") tensor[3][7] = NAN;
  }
  io::write_safetensors(file, tensors);
  try {
    train("run", {"quant.type=nf4"});
    ADD_FAILURE() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::Data);
    EXPECT_THAT(error.what(), HasSubstr("bert.encoder.layer.1.output.dense.weight[3, 7] is not finite"));
  }
}

// Runs training in a child that sends itself SIGTERM after step `at`; returns its exit code.
template <typename Train>
int exit_code_when_stopped(int64_t at, Train train) {
  const pid_t child = ::fork();
  if (child == 0) {
    install_stop_handlers();
    struct Stopper : TrainObserver {
      int64_t stop_at = 0;
      void on_step(const StepMetrics& metrics) override {
        if (metrics.step == stop_at) std::raise(SIGTERM);
      }
    } observer;
    observer.stop_at = at;
    try {
      train(observer);
    } catch (const Error& error) {
      ::_exit(error.exit_code());
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WEXITSTATUS(status);
}

TEST_F(TrainerTest, GoesOnAfterASignalToTheSameBits) {
  train("straight");
  // Step 4 ends within an epoch; after step 3 an evaluation is due, which the signal cuts short.
  for (const int64_t at : {int64_t{4}, int64_t{3}}) {
    const std::string run = "run-" + std::to_string(at);
    EXPECT_EQ(
        exit_code_when_stopped(at, [&](TrainObserver& observer) { lathe::train::train(recipe(run), false, observer); }),
        75);
    EXPECT_TRUE(fs::exists(directory_ / (run + "/checkpoints/step-" + std::to_string(at) + "/manifest.json")));
    train(run, {}, true);
    EXPECT_EQ(adapter_bytes(run), adapter_bytes("straight"));
    EXPECT_EQ(metrics(run), metrics("straight"));
  }
}

TEST_F(TrainerTest, ResumesAtEveryStepToTheSameBits) {
  const std::vector<std::string> overrides = {"training.max_steps=20", "training.gradient_accumulation_steps=3",
                                              "training.checkpoint_every_steps=1", "training.keep_checkpoints=20",
                                              "training.eval_every_steps=4"};
  train("straight", overrides);
  for (int k = 1; k < 20; ++k) {
    const std::string run = "run-" + std::to_string(k);
    fs::create_directories(directory_ / run / "checkpoints");
    const std::string checkpoint = "checkpoints/step-" + std::to_string(k);
    for (const std::string& part : {std::string("recipe.yaml"), std::string("metrics.jsonl"), checkpoint})
      fs::copy(directory_ / "straight" / part, directory_ / run / part, fs::copy_options::recursive);
    train(run, overrides, true);
    EXPECT_EQ(metrics(run), metrics("straight")) << "from step " << k;
    EXPECT_EQ(adapter_bytes(run), adapter_bytes("straight")) << "from step " << k;
  }
}

TEST_F(TrainerTest, GivesTheSameRunUnderEveryCheckpointingPolicy) {
  train("plain");
  int number = 0;
  for (const std::string policy : {"elementwise", "full", "{every: 2}", "{layers: 1}"}) {
    const std::string run = "run-" + std::to_string(number++);
    train(run, {"training.activation_checkpointing=" + policy});
    EXPECT_EQ(metrics(run), metrics("plain")) << policy;
    EXPECT_EQ(adapter_bytes(run), adapter_bytes("plain")) << policy;
  }
}

TEST_F(TrainerTest, GivesTheSameRunWithinAMemoryBudget) {
  train("plain");
  const auto peak = [&](const std::string& policy) {
    const auto planned = recipe("run", {"training.activation_checkpointing=" + policy});
    return cost::make_plan(planned, recipe::resolve_model(planned)).memory.peak;
  };
  const auto budget = (peak("none") + peak("full")) / 2;
  ASSERT_LT(budget, peak("none"));
  train("run", {"training.activation_checkpointing={budget: " + std::to_string(static_cast<int64_t>(budget)) + " B}"});
  EXPECT_EQ(metrics("run"), metrics("plain"));
  EXPECT_EQ(adapter_bytes("run"), adapter_bytes("plain"));
}

TEST_F(TrainerTest, StopsEarlyAndPublishesTheBestEvaluation) {
  const std::vector<std::string> overrides = {"training.max_steps=200",
                                              "training.eval_every_steps=2",
                                              "optimizer.lr=0.5",
                                              "optimizer.schedule=constant",
                                              "optimizer.num_warmup_steps=0",
                                              "training.keep_best={measure: eval_loss}",
                                              "training.keep_checkpoints=1",
                                              "training.early_stopping={patience: 3, measure: eval_loss}",
                                              "training.checkpoint_every_steps=0"};
  train("run", overrides);
  double best = INFINITY;
  int64_t best_step = 0, last_step = 0;
  for (const Json& line : metrics("run")) {
    if (!line.contains("eval_loss")) continue;
    last_step = line["step"];
    if (line["eval_loss"] >= best) continue;
    best = line["eval_loss"];
    best_step = last_step;
  }
  EXPECT_EQ(last_step, best_step + 6) << "three evaluations, two steps apart, without a better one";
  EXPECT_LT(last_step, 200);
  const auto published = io::TensorFile((directory_ / "run/adapter/adapter_model.safetensors").string());
  const auto kept = io::TensorFile(
      (directory_ / ("run/checkpoints/step-" + std::to_string(best_step) + "/trainable.safetensors")).string());
  expect_identical(published.tensor("base_model.model.classifier.weight"), kept.tensor("classifier.weight"));
  const std::string bytes = adapter_bytes("run");
  train("run", overrides, true);  // a finished run stays as it is
  EXPECT_EQ(adapter_bytes("run"), bytes);
}

TEST_F(TrainerTest, KeepsMetricsInMemoryWhileTheyCannotBeWritten) {
  RunDirectory run((directory_ / "run").string(), false);
  EXPECT_EQ(run.append_metrics({{"step", 1}}), "");
  fs::rename(directory_ / "run/metrics.jsonl", directory_ / "run/aside");
  fs::create_directory(directory_ / "run/metrics.jsonl");
  EXPECT_EQ(run.append_metrics({{"step", 2}}), "Is a directory");
  EXPECT_EQ(run.metrics_position().waiting, "{\"step\":2}\n");
  fs::remove(directory_ / "run/metrics.jsonl");
  fs::rename(directory_ / "run/aside", directory_ / "run/metrics.jsonl");
  EXPECT_EQ(run.append_metrics({{"step", 3}}), "");
  EXPECT_EQ(read_file(directory_ / "run/metrics.jsonl", 100), "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
}

// Every event of the trace is whole, and lies inside the one that was open when it began.
TEST_F(TrainerTest, ProfilesStepsWithoutChangingTheRun) {
  train("plain");
  TrainObserver silent;
  lathe::train::train(recipe("run"), false, silent, /*profile_steps=*/2);
  EXPECT_EQ(metrics("run"), metrics("plain"));
  EXPECT_EQ(adapter_bytes("run"), adapter_bytes("plain"));
  const Json trace = read_json_file((directory_ / "run/profile/trace.json").string());
  std::set<int64_t> steps;
  std::set<std::string> names;
  std::vector<double> open_ends;
  double last = 0;
  for (const Json& event : trace["traceEvents"]) {
    if (event["ph"] != "X") continue;
    const double start = event["ts"].get<double>(), end = start + event["dur"].get<double>();
    EXPECT_GE(start, last);
    last = start;
    while (!open_ends.empty() && open_ends.back() <= start) open_ends.pop_back();
    if (!open_ends.empty()) {
      EXPECT_LE(end, open_ends.back() + 0.002) << event.dump();
    }
    open_ends.push_back(end);
    steps.insert(event["args"]["step"].get<int64_t>());
    names.insert(event["name"].get<std::string>());
  }
  EXPECT_THAT(steps, ElementsAre(2, 3)) << "the first step only warms up";
  for (const char* name : {"step", "forward", "backward", "update", "lathe::attention"})
    EXPECT_TRUE(names.contains(name)) << name;
  EXPECT_TRUE(names.contains(nn::uses_onednn(at::kFloat) ? "lathe::gemm" : "aten::mm"));
  EXPECT_THAT(read_file(directory_ / "run/profile/operators.txt", 1 << 20), HasSubstr("2 steps, "));
}

TEST_F(TrainerTest, WritesCheckpointsByTheClock) {
  train("run", {"training.checkpoint_every_steps=0", "training.checkpoint_every_minutes=1e-9",
                "training.keep_checkpoints=99"});
  for (int step = 1; step <= 8; ++step)
    EXPECT_TRUE(fs::exists(directory_ / ("run/checkpoints/step-" + std::to_string(step) + "/manifest.json"))) << step;
}

TEST_F(TrainerTest, WarnsWhenWhatDecidesTheBitsHasChanged) {
  train("run", {"training.max_steps=4"});
  at::set_num_threads(2);
  struct Warnings : TrainObserver {
    std::string text;
    void on_warning(const std::string& warning) override { text += warning + "\n"; }
  } observer;
  lathe::train::train(recipe("run"), true, observer);
  EXPECT_THAT(observer.text, HasSubstr("bits may differ: this is LibTorch "));
  EXPECT_THAT(observer.text, HasSubstr("2 threads, the checkpoint is from LibTorch "));
}

TEST_F(TrainerTest, WritesACheckpointWhenAsked) {
  struct Asker : TrainObserver {
    void on_step(const StepMetrics& metrics) override {
      if (metrics.step == 2) std::raise(SIGUSR1);
    }
  } observer;
  install_stop_handlers();
  lathe::train::train(recipe("run", {"training.checkpoint_every_steps=0", "training.keep_checkpoints=9"}), false,
                      observer);
  EXPECT_TRUE(fs::exists(directory_ / "run/checkpoints/step-2/manifest.json"));
  EXPECT_FALSE(fs::exists(directory_ / "run/checkpoints/step-3"));
}

}  // namespace
}  // namespace lathe::train
