#include "lathe/config/bind.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "temporary_directory.h"

namespace lathe::config {
namespace {

namespace testing = lathe::testing;

using ::testing::ElementsAre;

struct Inner {
  int64_t count = 1;
  template <typename V>
  void visit(V& v) {
    v.field("count", count, {"how many", Need::Optional, at_least(1)});
  }
};

struct Outer {
  double rate = 0.5;
  bool on = false;
  std::string name = "plain";
  std::vector<std::string> list;
  std::optional<int64_t> maybe;
  std::optional<Inner> inner;
  std::vector<Inner> several;
  Path path;
  template <typename V>
  void visit(V& v) {
    v.field("rate", rate, {"a share", Need::Required, within(0, 1)});
    v.field("on", on, {"a switch"});
    v.field("name", name, {"a name"});
    v.field("list", list, {"names"});
    v.field("maybe", maybe, {"or none", Need::Optional, above(0)});
    v.field("inner", inner, {"nested"});
    v.field("several", several, {"nested list"});
    v.field("path", path, {"a file"});
  }
};

std::vector<std::string> bind_outer(const std::string& text, Outer& outer) {
  const YamlNode root = parse_yaml(text, "r.yaml");
  ReadContext context;
  Reader reader(root, "", "/base", context);
  outer.visit(reader);
  reader.finish();
  std::vector<std::string> mistakes;
  for (const Diagnostic& mistake : context.mistakes) mistakes.push_back(mistake.to_string());
  return mistakes;
}

TEST(Reader, ReportsEveryMistakeAtItsPlace) {
  Outer outer;
  EXPECT_THAT(bind_outer("on: yes\nname: [1]\nmaybe: 0\ninner: {count: 0, cuont: 2}\nraet: 1\n", outer),
              ElementsAre("r.yaml:1:1: rate: is required", "r.yaml:1:5: on: expected true or false, got \"yes\"",
                          "r.yaml:2:7: name: expected a string, got a list",
                          "r.yaml:3:8: maybe: expected an integer > 0, got 0",
                          "r.yaml:4:16: inner.count: expected an integer >= 1, got 0",
                          "r.yaml:4:19: inner.cuont: unknown key (did you mean count? known: count)",
                          "r.yaml:5:1: raet: unknown key (did you mean rate? known: rate, on, name, list, maybe, "
                          "inner, several, path)"));
}

TEST(Reader, TakesIntegersOnlyInDecimalAndNumbersOnlyFinite) {
  for (const char* text : {"010", "0x10", "1e3", "1_000", "1.0", "+1", "99999999999999999999", "", "--1", "\"1\""}) {
    Outer outer;
    EXPECT_EQ(bind_outer("rate: 0\nmaybe: " + std::string(text), outer).size(), 1u) << text;
  }
  for (const char* text : {"nan", ".nan", ".inf", "inf", "1e999", "1", "-0.1", "\"0.5\""}) {
    Outer outer;
    EXPECT_EQ(bind_outer("rate: " + std::string(text), outer).size(), 1u) << text;
  }
}

TEST(Reader, ResolvesPathsFromTheRecipesFolder) {
  Outer outer;
  EXPECT_THAT(bind_outer("rate: 0\npath: data/../a.txt\n", outer), ElementsAre());
  EXPECT_EQ(outer.path.resolved, "/base/a.txt");
  ::setenv("LATHE_TEST_FOLDER", "/somewhere", 1);
  EXPECT_THAT(bind_outer("rate: 0\npath: ${env:LATHE_TEST_FOLDER}/b\n", outer), ElementsAre());
  EXPECT_EQ(outer.path.resolved, "/somewhere/b");
  EXPECT_EQ(outer.path.text, "${env:LATHE_TEST_FOLDER}/b");
  EXPECT_THAT(bind_outer("rate: 0\npath: hf:org/name\n", outer), ElementsAre());
  EXPECT_EQ(outer.path.resolved, "hf:org/name");
  ::unsetenv("LATHE_TEST_FOLDER");
  EXPECT_THAT(bind_outer("rate: 0\npath: ${env:LATHE_TEST_FOLDER}/b\n", outer),
              ElementsAre("r.yaml:2:7: path: the environment variable \"LATHE_TEST_FOLDER\" is not set"));
  EXPECT_THAT(bind_outer("rate: 0\npath: ${oops}/b\n", outer),
              ElementsAre("r.yaml:2:7: path: unknown reference \"${oops}\" (known: ${cache}, ${env:NAME})"));
}

TEST(Reader, KeepsDotsBehindALinkAndAReference) {
  const testing::TemporaryDirectory directory;
  std::filesystem::create_directories(directory / "real/deep");
  std::filesystem::create_directory_symlink("real/deep", directory / "link");
  const std::string root = directory.path().string();
  const auto resolved = [&](const std::string& written) {
    Outer outer;
    EXPECT_THAT(bind_outer("rate: 0\npath: \"" + written + "\"\n", outer), ElementsAre());
    return outer.path;
  };
  EXPECT_EQ(resolved(root + "/link/../x").resolved, root + "/link/../x");
  EXPECT_EQ(resolved(root + "/link/../../x").resolved, root + "/link/../../x");
  EXPECT_EQ(resolved(root + "/link/./deeper/../x").resolved, root + "/link/x");
  EXPECT_EQ(resolved(root + "/real/deep/../x").resolved, root + "/real/x");
  EXPECT_EQ(resolved(".").resolved, "/base");
  EXPECT_EQ(resolved("runs/").resolved, "/base/runs");
  EXPECT_EQ(resolved("/../x").resolved, "/x");
  ::setenv("LATHE_TEST_FOLDER", "a/b", 1);
  const Path path = resolved("${env:LATHE_TEST_FOLDER}/../x");
  EXPECT_EQ(path.resolved, "/base/a/x");
  EXPECT_EQ(path.text, "${env:LATHE_TEST_FOLDER}/../x");
  EXPECT_EQ(resolved("c/${env:LATHE_TEST_FOLDER}/../x").text, "/base/c/${env:LATHE_TEST_FOLDER}/../x");
  ::unsetenv("LATHE_TEST_FOLDER");
}

TEST(Reader, RefusesAPathThatIsNotUtf8) {
  ::setenv("LATHE_TEST_FOLDER", "/caf\xE9", 1);
  Outer outer;
  const auto mistakes = bind_outer("rate: 0\npath: ${env:LATHE_TEST_FOLDER}/b\n", outer);
  ASSERT_EQ(mistakes.size(), 1u);
  EXPECT_THAT(mistakes[0], ::testing::StartsWith("r.yaml:2:7: path: expected a path in UTF-8, got \"/caf"));
  ::unsetenv("LATHE_TEST_FOLDER");
}

TEST(Writer, QuotesWhatAnyReaderCouldMistake) {
  for (const char* text : {"NULL", "Null", "~", "True", "ON", "No", "0x1F", "1_000", ".inf", ".nan", "+1", "1e3", "-",
                           "Auto", "", "a: b", "#"}) {
    Outer outer, again;
    outer.name = text;
    outer.list = {text, "plain"};
    Writer writer;
    outer.visit(writer);
    ASSERT_THAT(bind_outer(writer.text(), again), ElementsAre()) << text;
    EXPECT_EQ(again.name, text);
    EXPECT_EQ(again.list, outer.list);
    EXPECT_EQ(write_string(text), "\"" + std::string(text) + "\"");
  }
  EXPECT_EQ(write_string("/a/b-1.x"), "/a/b-1.x");
}

TEST(Writer, WritesWhatReadsBackEqual) {
  Outer outer;
  ASSERT_THAT(bind_outer("rate: 0.25\non: true\nname: \"no\"\nlist: [a, \"b c\", \"1\"]\nmaybe: 7\ninner: {count: "
                         "3}\nseveral: [{count: 4}, {count: 5}]\npath: x\n",
                         outer),
              ElementsAre());
  Writer writer;
  outer.visit(writer);
  EXPECT_EQ(writer.text(),
            "rate: 0.25\non: true\nname: \"no\"\nlist: [a, \"b c\", \"1\"]\nmaybe: 7\ninner:\n  count: 3\nseveral:\n  "
            "- count: 4\n  - count: 5\npath: /base/x\n");
  Outer again;
  ASSERT_THAT(bind_outer(writer.text(), again), ElementsAre());
  Writer second;
  again.visit(second);
  EXPECT_EQ(second.text(), writer.text());
}

TEST(SchemaPrinter, ShowsTypeRangeDefaultAndMeaning) {
  Outer outer;
  SchemaPrinter printer;
  outer.visit(printer);
  EXPECT_THAT(printer.text(), ::testing::HasSubstr("rate: a number in [0, 1); required  # a share\n"));
  EXPECT_THAT(printer.text(), ::testing::HasSubstr("  count: an integer >= 1; default 1  # how many\n"));
}

}  // namespace
}  // namespace lathe::config
