#include "lathe/report/page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <string>

#include "lathe/base/json.h"
#include "lathe/report/charts.h"
#include "lathe/report/recipe_diff.h"

namespace lathe::report {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pair;

constexpr const char* kHostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x01\xFF\u2028";

report::Run made_run(const std::string& name, size_t steps) {
  report::Run run;
  run.name = name;
  run.details = Json::object();
  for (const char* column : {"loss", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second", "peak_rss_bytes"})
    run.steps.columns.emplace_back(column, std::vector<double>());
  for (size_t i = 0; i < steps; ++i) {
    run.steps.step.push_back(static_cast<double>(i + 1));
    for (auto& [column, values] : run.steps.columns) values.push_back(1 + std::sin(0.1 * static_cast<double>(i)));
  }
  return run;
}

Json page_data(const std::string& page) {
  const std::string open = "<script type=\"application/json\" id=\"data\">";
  const size_t begin = page.find(open) + open.size();
  return parse_json(page.substr(begin, page.find("</script>", begin) - begin), "page");
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

std::vector<std::string> chart_ids(const std::vector<report::Run>& runs) {
  std::vector<std::string> ids;
  for (const Chart& chart : make_charts(runs)) ids.push_back(chart.id);
  return ids;
}

TEST(MakeCharts, AreThoseThatHaveValues) {
  report::Run run = made_run("first", 3);
  run.evaluations.step = {3};
  run.evaluations.columns = {{"epoch", {1}}, {"eval_loss", {0.5}}, {"accuracy", {0.75}}};
  EXPECT_THAT(chart_ids({run}), ElementsAre("loss", "lr", "grad_norm", "throughput", "memory", "eval_0", "eval_1"));
  for (auto& value : run.steps.columns[2].second) value = std::numeric_limits<double>::quiet_NaN();
  run.evaluations = {};
  EXPECT_THAT(chart_ids({run}), ElementsAre("loss", "lr", "throughput", "memory"));
  EXPECT_THAT(chart_ids({made_run("empty", 0)}), ElementsAre());
}

TEST(MakeCharts, DrawsPlannedAndMeasuredMemory) {
  report::Run run = made_run("first", 3);
  run.details = {{"planned", {{"peak_bytes", 1000}}}, {"measured", {{"peak_bytes", "no number"}}}};
  const Chart memory = make_charts({run}).back();
  ASSERT_EQ(memory.curves.size(), 2U);
  EXPECT_EQ(memory.curves[1].label, "planned peak");
  EXPECT_EQ(memory.curves[1].kind, Curve::Kind::Limit);
  EXPECT_THAT(memory.curves[1].series.y, ElementsAre(1000, 1000));
}

TEST(RenderPage, EqualsItselfAndLoadsNothing) {
  const std::string page = render_page({made_run("first", 3)});
  EXPECT_EQ(page, render_page({made_run("first", 3)}));
  EXPECT_THAT(page, HasSubstr("content=\"default-src 'none'; script-src 'sha256-"));
  EXPECT_THAT(page, Not(HasSubstr("unsafe-inline")));
  for (const char* loading : {" src=", "<link", "@import", "url(", " style="})
    EXPECT_EQ(count(page, loading), 0U) << loading;
}

TEST(RenderPage, SumsUpWithoutScript) {
  const std::string page = render_page({made_run("first", 3)});
  const std::string table = page.substr(page.find("Final figures"), 2000);
  for (const char* row : {"Final loss", "Steps", "Tokens per second", "Time in steps", "Peak memory"})
    EXPECT_THAT(table, HasSubstr("<th scope=\"row\">" + std::string(row) + "</th>"));
  EXPECT_THAT(page, HasSubstr("<noscript>"));
}

TEST(RenderPage, ShowsNoChartsBeforeTheFirstStep) {
  const std::string page = render_page({made_run("first", 0)});
  EXPECT_THAT(page, HasSubstr("No step has been recorded yet."));
  EXPECT_TRUE(page_data(page)["charts"].empty());
}

TEST(RenderPage, DrawsOneStep) {
  const Json data = page_data(render_page({made_run("first", 1)}));
  EXPECT_EQ(data["charts"][0]["curves"][0]["x"], Json::parse("[1]"));
}

TEST(RenderPage, EscapesHostileText) {
  report::Run run = made_run(kHostile, 2);
  run.recipe = std::string("data:\n  train: ") + kHostile + "\n";
  run.warnings = {kHostile};
  run.details = {{kHostile, {{kHostile, kHostile}}}, {"adapter_norms", {{kHostile, 1.0}, {"x", kHostile}}}};
  run.evaluations.step = {2};
  run.evaluations.columns = {{kHostile, {0.5}}};
  report::Run other = made_run(kHostile, 2);
  other.recipe = std::string(kHostile) + ": 1\n";
  for (const std::string& page : {render_page({run}), render_page({run, other})}) {
    EXPECT_EQ(count(page, "<script"), 3U);
    EXPECT_EQ(count(page, "</script"), 3U);
    EXPECT_EQ(count(page, "<img"), 0U);
    EXPECT_EQ(count(page, "\xFF"), 0U);
    EXPECT_EQ(count(page, "\u2028"), 0U);
    EXPECT_EQ(count(page, std::string(1, '\x01')), 0U);
    EXPECT_THAT(page_data(page)["runs"][0], HasSubstr("</script><script>alert(1)"));
  }
}

TEST(RenderPage, ShowsWhatRunJsonHolds) {
  report::Run run = made_run("first", 2);
  EXPECT_THAT(render_page({run}), Not(HasSubstr("class=\"facts\"")));
  run.details = {{"environment", {{"threads", "2"}}},
                 {"planned", {{"peak_bytes", 1536}, {"parts", {1, 2}}, {"none", nullptr}}},
                 {"adapter_norms", {{"layer.0", 2.0}, {"layer.1", -1.0}, {"layer.2", nullptr}}},
                 {"seed", 7}};
  const std::string page = render_page({run});
  for (const char* part :
       {"<h2>Environment</h2>", "threads</th><td>2</td>", "<h2>Planned</h2>", "peak_bytes</th><td>1.5 KiB</td>",
        "parts</th><td>[1,2]</td>", "none</th><td>&ndash;</td>", "<h2>Adapter norms</h2>", "<rect width=\"100%\"",
        "<rect width=\"50%\"", "layer.2</th><td>&ndash;</td>", "<h2>Other</h2>", "seed</th><td>7</td>"})
    EXPECT_THAT(page, HasSubstr(part));
}

TEST(RenderPage, ShowsClassesAndMistakesWithTheirPictures) {
  report::Run run = made_run("r", 3);
  run.evaluation = ClassEvaluation{
      7, 5, {{"cat", 4, 0.75, {3, 1}}, {kHostile, 0, {}, {0, 0}}}, {{"f/x.png", "", "QUJD", 0, 1, 0.125, 0.5}}};
  const std::string page = render_page({run});
  EXPECT_THAT(page, HasSubstr("; img-src data:; base-uri"));
  EXPECT_THAT(page, HasSubstr("Step 7, 5 samples"));
  EXPECT_THAT(page, HasSubstr("<td class=\"right heat-7\">3</td><td class=\"wrong heat-4\">1</td><td>75.0 %</td>"));
  EXPECT_THAT(page, HasSubstr("<td>&ndash;</td></tr>"));
  EXPECT_THAT(page, HasSubstr("<img alt=\"cat\" src=\"data:image/png;base64,QUJD\">"));
  EXPECT_THAT(page, HasSubstr("<strong>cat</strong> (12.5 %) taken for <strong>"));
  EXPECT_THAT(page, HasSubstr("(50.0 %)<small>f/x.png</small>"));
  EXPECT_THAT(page, Not(HasSubstr("<script>alert")));
  EXPECT_THAT(render_page({made_run("r", 3)}), Not(HasSubstr("img-src")));
  EXPECT_THAT(render_page({run, made_run("s", 3)}), HasSubstr("Step 7, 5 samples: r"));
}

TEST(RenderPage, BoundsHugeRunJson) {
  report::Run run = made_run("first", 2);
  Json::object_t many;
  for (int i = 0; i < 200000; ++i) many.push_back({"member" + std::to_string(i), Json{{"x", i}}});
  run.details = Json(std::move(many));
  const std::string page = render_page({run});
  EXPECT_LT(page.size(), size_t{1} << 20);
  EXPECT_THAT(page, HasSubstr("199968 more objects of run.json are left out."));
}

TEST(RenderPage, MarksNonFiniteValuesAsGaps) {
  report::Run run = made_run("first", 3);
  run.steps.columns[0].second[1] = std::numeric_limits<double>::infinity();
  const Json loss = page_data(render_page({run}))["charts"][0]["curves"][0]["y"];
  EXPECT_TRUE(loss[1].is_null());
  EXPECT_TRUE(loss[2].is_number());
}

TEST(RenderPage, ComparesRuns) {
  report::Run first = made_run("same", 3), second = made_run("same", 5);
  first.recipe = "optimizer:\n  lr: 0.1\n  type: adamw\n";
  second.recipe = "optimizer:\n  lr: 0.2\n  type: adamw\n";
  const std::string page = render_page({first, second});
  EXPECT_THAT(page, HasSubstr("2 runs compared"));
  EXPECT_THAT(page, HasSubstr("same (1)"));
  EXPECT_THAT(page, HasSubstr("same (2)"));
  EXPECT_THAT(page, HasSubstr("<tr><th scope=\"row\">optimizer.lr</th><td>0.1</td><td>0.2</td></tr>"));
  EXPECT_THAT(page, Not(HasSubstr("optimizer.type</th>")));
  EXPECT_THAT(page, HasSubstr("<strong>"));
}

TEST(RenderPage, RendersAHundredThousandStepsFast) {
  const report::Run run = made_run("long", 100000);
  const auto begin = std::chrono::steady_clock::now();
  const std::string page = render_page({run});
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(page.size(), size_t{1} << 20);
  EXPECT_LT(taken.count(), 5.0);  // takes 0.02 s; a bound that sanitizers on a busy machine keep too
}

TEST(RecipeKeys, FollowsIndentation) {
  EXPECT_THAT(
      recipe_keys(
          "# head\nmodel:\n  path: a: b\n  moe:\n    top_k: 2\ndata:\n  train:\n    - one\n    - two\nlast: 1\r\n"),
      ElementsAre(Pair("model", ""), Pair("model.path", "a: b"), Pair("model.moe", ""), Pair("model.moe.top_k", "2"),
                  Pair("data", ""), Pair("data.train", "- one - two"), Pair("last", "1")));
  EXPECT_THAT(recipe_keys(""), ElementsAre());
  EXPECT_THAT(recipe_keys("- stray\n"), ElementsAre());
}

TEST(RecipeDifferences, AreKeysThatDifferOrLack) {
  const auto rows = recipe_differences({"a: 1\nb: 2\n", "a: 1\nb: 3\n", "a: 1\nc: 4\n"});
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].key, "b");
  EXPECT_THAT(rows[0].values, ElementsAre("2", "3", ""));
  EXPECT_EQ(rows[1].key, "c");
  EXPECT_THAT(rows[1].values, ElementsAre("", "", "4"));
  EXPECT_TRUE(recipe_differences({"a: 1\n"}).empty());
}

}  // namespace
}  // namespace lathe::report
