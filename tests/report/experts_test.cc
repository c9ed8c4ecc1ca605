#include "lathe/report/experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "lathe/report/charts.h"
#include "lathe/report/figures.h"
#include "lathe/report/page.h"
#include "temporary_directory.h"

namespace lathe::report {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::TemporaryDirectory;

// Two layers of two experts, the first even, the second collapsed.
std::string line(int step, const std::string& load = "[[0.5,0.5],[1.0,0.0]]") {
  return "{\"step\":" + std::to_string(step) +
         ",\"loss\":0.5,\"moe_loss\":0.0,\"moe_entropy\":0.25,\"moe_max_vio\":1.0,\"moe_dead\":1,\"moe_dropped\":0.0," +
         "\"moe_load\":" + load + "}\n";
}

report::Run read(const std::string& metrics) {
  const TemporaryDirectory scratch;
  scratch.write("metrics.jsonl", metrics);
  return read_run(scratch.path());
}

TEST(ExpertLoads, AreReadByLayerAndTheLastLineOfAStepCounts) {
  const report::Run run = read(line(1) + line(2) + line(2, "[[0.25,0.75],[1,0]]") + line(3, "[]"));
  EXPECT_THAT(run.loads.num_experts, ElementsAre(2, 2));
  ASSERT_EQ(run.loads.steps.size(), 2U);
  EXPECT_THAT(run.loads.steps.at(1), ElementsAre(0.5f, 0.5f, 1.0f, 0.0f));
  EXPECT_THAT(run.loads.steps.at(2), ElementsAre(0.25f, 0.75f, 1.0f, 0.0f));
  EXPECT_THAT(run.warnings, ElementsAre(HasSubstr("1 line repeats a step")));
}

TEST(ExpertLoads, LeavesDamagedLinesOutByName) {
  for (const char* bad : {"7", "[7]", "[[]]", "[[0.5,\"x\"]]", "[[0.5,1.5]]", "[[0.5,-0.5]]", "[[0.5,0.5]]"}) {
    const report::Run run = read(line(1) + line(2, bad));
    EXPECT_THAT(run.steps.step, ElementsAre(1)) << bad;
    EXPECT_THAT(run.warnings, ElementsAre(HasSubstr("1 damaged line is left out, the first is line 2"))) << bad;
  }
}

TEST(ExpertsSection, ShadesSharesByTheEvenOne) {
  const std::string page = render_page({read(line(1) + line(2))});
  EXPECT_THAT(page, HasSubstr("<h2>Experts</h2>"));
  EXPECT_THAT(page, HasSubstr("Load of expert layer 0</h3><p>2 experts</p>"));
  // Of two experts an even one is half dark, one that takes all is black, one that gets nothing has no cell.
  EXPECT_THAT(page, HasSubstr("viewBox=\"0 0 2 2\" preserveAspectRatio=\"none\">"
                              "<rect x=\"0\" y=\"0\" width=\"2\" height=\"1\" fill-opacity=\"0.5\"/>"
                              "<rect x=\"0\" y=\"1\" width=\"2\" height=\"1\" fill-opacity=\"0.5\"/></svg>"));
  EXPECT_THAT(page, HasSubstr("preserveAspectRatio=\"none\"><rect x=\"0\" y=\"0\" width=\"2\" height=\"1\" "
                              "fill-opacity=\"1\"/></svg>"));
  EXPECT_THAT(page, HasSubstr("Down: expert. Across: step 1 to 2."));
  EXPECT_THAT(page, Not(HasSubstr("least even layers")));
  EXPECT_THAT(render_page({read("{\"step\":1,\"loss\":0.5}\n")}), Not(HasSubstr("<h2>Experts</h2>")));
}

TEST(ExpertsSection, ChoosesTheLeastEvenOfManyLayersAndBoundsTheCells) {
  std::string load = "[";
  for (int layer = 0; layer < 20; ++layer)
    load += std::string(layer == 0 ? "" : ",") + (layer == 17 ? "[1,0]" : "[0.5,0.5]");
  std::string metrics;
  for (int step = 1; step <= 1000; ++step) metrics += line(step, load + "]");
  const report::Run run = read(metrics);
  const std::string section = experts_section({run, run});
  EXPECT_THAT(section, HasSubstr("Shown are the least even layers."));
  EXPECT_THAT(section, HasSubstr("Load of expert layer 17: "));
  EXPECT_THAT(section, HasSubstr("viewBox=\"0 0 100 2\""));
  EXPECT_THAT(section, Not(HasSubstr("Load of expert layer 19")));
}

TEST(ExpertsSection, AveragesNeighboursOfManyExperts) {
  std::string load = "[[";
  for (int expert = 0; expert < 128; ++expert) load += std::string(expert == 0 ? "" : ",") + (expert == 3 ? "1" : "0");
  const std::string section = experts_section({read(line(1, load + "]]"))});
  EXPECT_THAT(section, HasSubstr("128 experts, each row the mean of 2"));
  EXPECT_THAT(section, HasSubstr("viewBox=\"0 0 1 64\" preserveAspectRatio=\"none\"><rect x=\"0\" y=\"1\" width=\"1\" "
                                 "height=\"1\" fill-opacity=\"1\"/></svg>"));
}

TEST(MakeCharts, ShowsHowExpertsWereUsed) {
  const report::Run run = read(line(1) + line(2));
  std::vector<std::string> ids;
  for (const Chart& chart : make_charts({run})) ids.push_back(chart.id);
  // Nothing was dropped, and there are no balance terms.
  EXPECT_THAT(ids, ElementsAre("loss", "moe_entropy", "moe_max_vio", "moe_dead"));
  std::vector<std::string> labels;
  for (const Figure& figure : final_figures(run)) labels.push_back(figure.label + " " + figure.text);
  EXPECT_THAT(labels, ElementsAre("Final loss 0.5", "Routing entropy 0.25", "Dead experts 1", "Steps 2"));
}

}  // namespace
}  // namespace lathe::report
