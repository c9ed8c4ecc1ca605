#include "lathe/report/memory.h"

#include <gmock/gmock.h>

namespace lathe::report {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

report::Run planned_run(const char* name) {
  report::Run run;
  run.name = name;
  run.details = {{"planned_peak", {{"weights_bytes", 6 << 20}, {"gradients_bytes", 0}, {"activations_bytes", 2 << 20}}},
                 {"measured", {{"peak_bytes", 4 << 20}}}};
  return run;
}

TEST(MemorySection, StacksTheComponentsBesideTheMeasuredPeak) {
  const std::string page = memory_section({planned_run("first")});
  EXPECT_THAT(page, HasSubstr("Planned 8.0 MiB, measured 4.0 MiB"));
  EXPECT_THAT(page, HasSubstr("<rect class=\"run-0\" x=\"0\" y=\"0\" height=\"1\" width=\"0.75\"/>"
                              "<rect class=\"run-1\" x=\"0.75\" y=\"0\" height=\"1\" width=\"0.25\"/></svg>"));
  EXPECT_THAT(page, HasSubstr("<rect class=\"run-7\" x=\"0\" y=\"0\" height=\"1\" width=\"0.5\"/></svg>"));
  EXPECT_THAT(page, HasSubstr("weights</th><td>6.0 MiB</td><td>75 %</td>"));
  EXPECT_THAT(page, HasSubstr("measured</th><td>4.0 MiB</td><td>50 %</td>"));
  EXPECT_THAT(page, Not(HasSubstr("gradients")));
}

TEST(MemorySection, HasOneScaleForAllRuns) {
  report::Run large = planned_run("large");
  large.details["planned_peak"]["activations_bytes"] = 26 << 20;
  const std::string page = memory_section({planned_run("first"), large});
  EXPECT_THAT(page, HasSubstr("width=\"0.1875\"/>"));  // 6 MiB of 32
}

TEST(MemorySection, LeavesOutWhatIsNoPlan) {
  report::Run none = planned_run("none"), odd = planned_run("odd");
  none.details.erase("planned_peak");
  odd.details["planned_peak"] = {{"weights_bytes", "many"}, {"optimizer_bytes", -5}, {"peak", 7}};
  EXPECT_EQ(memory_section({none, odd}), "");
  report::Run unmeasured = planned_run("<b>");
  unmeasured.details.erase("measured");
  const std::string page = memory_section({unmeasured});
  EXPECT_THAT(page, HasSubstr("<h3>&lt;b&gt;</h3><p>Planned 8.0 MiB</p>"));
}

}  // namespace
}  // namespace lathe::report
