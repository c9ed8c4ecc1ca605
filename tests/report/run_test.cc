#include "lathe/report/run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "expect_error.h"
#include "lathe/report/figures.h"
#include "temporary_directory.h"

namespace lathe::report {
namespace {

using ::testing::ElementsAre;
using testing::error_text;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TemporaryDirectory;

constexpr const char* kTwoSteps =
    "{\"step\":1,\"epoch\":0.5,\"loss\":0.75,\"lr\":0.1,\"tokens\":100,\"seconds\":2.0,\"peak_rss_bytes\":1048576}\n"
    "{\"step\":2,\"epoch\":1.0,\"loss\":0.5,\"lr\":0.05,\"tokens\":60,\"seconds\":2.0,\"peak_rss_bytes\":2097152}\n";

TEST(ReadRun, TakesEverythingThatTheDirectoryHolds) {
  const TemporaryDirectory scratch;
  scratch.write("first/metrics.jsonl",
                std::string(kTwoSteps) + "{\"step\":2,\"epoch\":1.0,\"eval_loss\":0.25,\"accuracy\":0.875}\n");
  scratch.write("first/recipe.yaml", "optimizer:\n  lr: 0.1\n");
  scratch.write("first/run.json", R"({"environment": {"threads": "2"}})");
  const report::Run run = read_run(scratch / "first/");
  EXPECT_EQ(run.name, "first");
  EXPECT_THAT(run.warnings, IsEmpty());
  EXPECT_THAT(run.steps.step, ElementsAre(1, 2));
  EXPECT_THAT(*run.steps.find("loss"), ElementsAre(0.75, 0.5));
  EXPECT_THAT(*run.evaluations.find("accuracy"), ElementsAre(0.875));
  EXPECT_EQ(run.steps.find("accuracy"), nullptr);
  EXPECT_EQ(run.recipe, "optimizer:\n  lr: 0.1\n");
  EXPECT_EQ(run.details["environment"]["threads"], "2");
}

TEST(ReadRun, TakesEmptyMetrics) {
  const TemporaryDirectory scratch;
  scratch.write("metrics.jsonl", "");
  const report::Run run = read_run(scratch.path());
  EXPECT_THAT(run.steps.step, IsEmpty());
  EXPECT_TRUE(run.details.is_object());
  EXPECT_THAT(run.warnings, IsEmpty());
  EXPECT_THAT(final_figures(run), IsEmpty());
}

TEST(ReadRun, WarnsOfAHalfLastLine) {
  const TemporaryDirectory scratch;
  scratch.write("metrics.jsonl", std::string(kTwoSteps) + "{\"step\":3,\"loss\":0.");
  const report::Run run = read_run(scratch.path());
  EXPECT_THAT(run.steps.step, ElementsAre(1, 2));
  EXPECT_THAT(run.warnings,
              ElementsAre(HasSubstr("metrics.jsonl: 1 damaged line is left out, the first is line 3 (bad JSON")));
}

TEST(ReadRun, WarnsOfLinesThatAreNoMetrics) {
  const TemporaryDirectory scratch;
  scratch.write("metrics.jsonl",
                "[1]\n{\"step\":-1}\n{\"loss\":1}\n{\"step\":1,\"loss\":NaN}\n\xFF\n" + std::string(kTwoSteps));
  const report::Run run = read_run(scratch.path());
  EXPECT_THAT(run.steps.step, ElementsAre(1, 2));
  EXPECT_THAT(run.warnings, ElementsAre(HasSubstr("5 damaged lines are left out, the first is line 1")));
}

TEST(ReadRun, KeepsNonFiniteValuesAsGapsAndSaysSo) {
  const TemporaryDirectory scratch;
  scratch.write("metrics.jsonl",
                "{\"step\":1,\"loss\":1.0}\n{\"step\":2,\"loss\":null}\n{\"step\":3,\"loss\":null}\n{\"step\":4}\n");
  const report::Run run = read_run(scratch.path());
  const auto& loss = *run.steps.find("loss");
  EXPECT_EQ(loss[0], 1.0);
  for (const size_t gap : {1, 2, 3}) EXPECT_TRUE(std::isnan(loss[gap]));
  EXPECT_THAT(run.warnings, ElementsAre("metrics.jsonl: 2 values are not finite, the first is loss at step 2"));
}

TEST(ReadRun, OrdersStepsAndKeepsTheLastLineOfEach) {
  const TemporaryDirectory scratch;
  scratch.write(
      "metrics.jsonl",
      "{\"step\":2,\"loss\":2}\n{\"step\":1,\"loss\":1}\n{\"step\":2,\"loss\":20}\n{\"step\":3,\"loss\":3}\n");
  const report::Run run = read_run(scratch.path());
  EXPECT_THAT(run.steps.step, ElementsAre(1, 2, 3));
  EXPECT_THAT(*run.steps.find("loss"), ElementsAre(1, 20, 3));
  EXPECT_THAT(run.warnings, ElementsAre("metrics.jsonl: 1 line repeats a step: the last line of a step is shown"));
}

TEST(ReadRun, WarnsOfAnUnreadableRunJson) {
  const TemporaryDirectory scratch;
  scratch.write("metrics.jsonl", kTwoSteps);
  scratch.write("run.json", "{\"environment\":");
  EXPECT_THAT(read_run(scratch.path()).warnings, ElementsAre(HasSubstr("run.json:1: bad JSON")));
  scratch.write("run.json", "[1]");
  const report::Run run = read_run(scratch.path());
  EXPECT_THAT(run.warnings, ElementsAre("run.json: expected a JSON object, got [...]"));
  EXPECT_TRUE(run.details.empty());
}

TEST(ReadRun, WarnsOfAnEvaluationThatIsNone) {
  const std::pair<const char*, const char*> cases[] = {
      {R"([])", "evaluation.json: expected a JSON object, got []"},
      {R"({"step": 1, "samples": 2, "labels": ["a"], "class_samples": [2]})", "evaluation.json: class_accuracy"},
      {R"({"step": 1, "samples": 2, "labels": ["a", "b"], "class_samples": [1, 1], "class_accuracy": [1, 1],
           "confusion": [[1], [0, 1]]})",
       "evaluation.json: confusion"},
      {R"({"step": 1, "samples": 1, "labels": ["a"], "class_samples": [1], "class_accuracy": [1],
           "worst": [{"truth": 0, "predicted": 1}]})",
       "evaluation.json: worst.0.predicted"},
      {R"({"step": 1, "samples": 1, "labels": ["a"], "class_samples": [1], "class_accuracy": [1],
           "worst": [{"truth": 0, "predicted": 0, "picture": "\"><b>"}]})",
       "evaluation.json: worst.0.picture: expected base64"}};
  for (const auto& [content, warning] : cases) {
    const TemporaryDirectory folder;
    folder.write("metrics.jsonl", "{\"step\":1,\"loss\":1}\n");
    folder.write("evaluation.json", content);
    const report::Run run = read_run(folder.path());
    ASSERT_EQ(run.warnings.size(), 1U) << content;
    EXPECT_THAT(run.warnings[0], HasSubstr(warning));
    EXPECT_FALSE(run.evaluation);
  }
}

TEST(ReadRun, WarnsOfARecipeThatIsTooLarge) {
  const TemporaryDirectory scratch;
  scratch.write("metrics.jsonl", kTwoSteps);
  scratch.write("recipe.yaml", std::string((size_t{1} << 20) + 1, '#'));
  const report::Run run = read_run(scratch.path());
  EXPECT_TRUE(run.recipe.empty());
  EXPECT_THAT(run.warnings, ElementsAre(HasSubstr("recipe.yaml: ")));
}

TEST(ReadRun, RefusesWhatIsNoRunDirectory) {
  const TemporaryDirectory scratch;
  EXPECT_EQ(error_text(ErrorKind::Data, [&] { read_run(scratch / "none"); }),
            (scratch / "none").string() + ": no such run directory");
  EXPECT_EQ(error_text(ErrorKind::Data, [&] { read_run(scratch.path()); }),
            scratch.path().string() + ": not a run directory: no metrics.jsonl (name the recipe's output.dir)");
  std::filesystem::create_directory(scratch / "metrics.jsonl");
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { read_run(scratch.path()); }), HasSubstr("metrics.jsonl"));
}

TEST(FinalFigures, SumARunUp) {
  const TemporaryDirectory scratch;
  scratch.write("metrics.jsonl", std::string(kTwoSteps) +
                                     "{\"step\":1,\"epoch\":0.5,\"eval_loss\":0.25,\"accuracy\":0.5}\n"
                                     "{\"step\":2,\"epoch\":1.0,\"eval_loss\":0.5,\"accuracy\":0.75}\n");
  std::string all;
  for (const Figure& figure : final_figures(read_run(scratch.path()))) {
    all += figure.label + "=" + figure.text + (figure.place.empty() ? "" : " at " + figure.place) + "; ";
  }
  EXPECT_EQ(all,
            "Final loss=0.5; Best eval_loss=0.25 at step 1; Best accuracy=0.75 at step 2; Steps=2; Epochs=1; "
            "Tokens per second=40; Time in steps=4 s; Peak memory=2.0 MiB; ");
}

TEST(Format, RoundsAsPeopleRead) {
  EXPECT_EQ(format_number(0.0217364), "0.02174");
  EXPECT_EQ(format_number(123456.7), "123457");
  EXPECT_EQ(format_number(1.5e-7), "1.5e-07");
  EXPECT_EQ(format_number(1e300), "1e+300");
  EXPECT_EQ(format_seconds(12.345), "12.35 s");
  EXPECT_EQ(format_seconds(59.9999), "60 s");
  EXPECT_EQ(format_seconds(112.4), "1 min 52 s");
  EXPECT_EQ(format_seconds(7265), "2 h 1 min");
  EXPECT_EQ(format_seconds(1e300), "1e+300 s");
  EXPECT_EQ(format_named("peak_bytes", 1536), "1.5 KiB");
  EXPECT_EQ(format_named("peak_bytes", -1), "-1");
}

}  // namespace
}  // namespace lathe::report
