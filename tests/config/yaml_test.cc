#include "lathe/config/yaml.h"

#include "expect_error.h"
#include "temporary_directory.h"

namespace lathe::config {
namespace {

using testing::error_text;
using ::testing::HasSubstr;

std::string yaml_refusal(const std::string& text) {
  return error_text(ErrorKind::Config, [&] { parse_yaml(text, "r.yaml"); });
}

TEST(ParseYaml, KeepsOrderPlacesAndQuotes) {
  const YamlNode root = parse_yaml("b: 1\na:\n  - x\n  - \"2\"\n", "r.yaml");
  ASSERT_EQ(root.members.size(), 2u);
  EXPECT_EQ(root.members[0].key, "b");
  const YamlNode& list = root.members[1].value;
  ASSERT_EQ(list.items.size(), 2u);
  EXPECT_EQ(list.items[1].line, 4);
  EXPECT_EQ(list.items[1].column, 5);
  EXPECT_TRUE(list.items[1].quoted);
  EXPECT_FALSE(list.items[0].quoted);
}

TEST(ParseYaml, RefusesWhatTheParserWouldLetPass) {
  EXPECT_EQ(yaml_refusal("a: 1\nb: 2\na: 3\n"), "r.yaml:3:1: a: duplicate key");
  EXPECT_EQ(yaml_refusal("a: &x 1\nb: *x\nc: [*x, *x]\n"),
            "r.yaml:1:4: anchors and aliases are not allowed (write the values out)");
  EXPECT_THAT(yaml_refusal("a: !!int 1\n"), HasSubstr("r.yaml:1:4: tags are not allowed"));
  EXPECT_THAT(yaml_refusal("a: 1\n---\nb: 2\n"), HasSubstr("a second document is not allowed"));
  EXPECT_THAT(yaml_refusal("<<: {a: 1}\n"), HasSubstr("merge keys are not allowed"));
  EXPECT_THAT(yaml_refusal("[1, 2]: x\n"), HasSubstr("a key must be a word"));
  EXPECT_THAT(yaml_refusal("a: [1\n"), HasSubstr("bad YAML"));
  EXPECT_THAT(yaml_refusal("ä: 'ö'\nb: \"unfinished \\\"\n"), HasSubstr("r.yaml:2:4: quotes without their end"));
  EXPECT_THAT(yaml_refusal("a: 'it''s\n"), HasSubstr("r.yaml:1:4: quotes without their end"));
  EXPECT_THAT(yaml_refusal(""), HasSubstr("r.yaml: is empty"));
}

TEST(ParseYaml, BoundsSizeAndNestingBeforeParsing) {
  EXPECT_THAT(yaml_refusal(std::string(300 << 10, 'a')), HasSubstr("expected at most 262144 bytes, got 307200 bytes"));
  EXPECT_THAT(yaml_refusal(std::string(100000, '[')), HasSubstr("nested more than 32 deep"));
  std::string dashes, indented;
  for (int i = 0; i < 200; ++i) dashes += "- ";
  for (int i = 0; i < 40; ++i) indented += std::string(static_cast<size_t>(2 * i), ' ') + "a:\n";
  EXPECT_THAT(yaml_refusal(dashes), HasSubstr("nested more than 32 deep"));
  EXPECT_THAT(yaml_refusal(indented), HasSubstr("nested more than 32 deep"));
  EXPECT_THAT(yaml_refusal(std::string("a: \0b", 5)), HasSubstr("expected UTF-8 text, got binary data"));
  EXPECT_THAT(yaml_refusal("a: \xFF"), HasSubstr("expected UTF-8 text, got binary data"));
}

TEST(ReadYamlFile, RefusesADirectoryAndAMissingFile) {
  const testing::TemporaryDirectory directory;
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { read_yaml_file(directory.path().string()); }),
              HasSubstr("expected a YAML file, got a directory"));
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { read_yaml_file((directory / "none").string()); }),
              HasSubstr("no such file"));
}

TEST(ApplyOverride, SetsAddsAndRemoves) {
  YamlNode root = parse_yaml("a: {b: 1, c: 2}\n", "r.yaml");
  apply_override(root, "a.b=[3, x]");
  apply_override(root, "d.e=\"5\"");
  apply_override(root, "~a.c");
  apply_override(root, "~nothing.here");
  EXPECT_EQ(root.find("a")->find("b")->items[1].text, "x");
  EXPECT_EQ(root.find("a")->find("b")->file, "override");
  EXPECT_TRUE(root.find("d")->find("e")->quoted);
  EXPECT_EQ(root.find("a")->find("c"), nullptr);
}

TEST(ApplyOverride, RefusesARootThatIsNoMapping) {
  for (const auto& [text, got] : {std::pair("hello\n", "\"hello\""), std::pair("- a\n", "a list")}) {
    for (const char* argument : {"optimizer.lr=1", "~optimizer.lr", "a=1"}) {
      YamlNode root = parse_yaml(text, "r.yaml");
      EXPECT_EQ(error_text(ErrorKind::Config, [&, &text = argument] { apply_override(root, text); }),
                "r.yaml:1:1: expected a mapping, got " + std::string(got) + " (see lathe show --schema)");
    }
  }
}

TEST(ApplyOverride, RefusesWhatHasNoForm) {
  YamlNode root = parse_yaml("a: 1\n", "r.yaml");
  for (const char* argument : {"a.=8", ".a=8", "a..b=8", "~a.", "."})
    EXPECT_THAT(error_text(ErrorKind::Config, [&] { apply_override(root, argument); }),
                HasSubstr(*argument == '.' && argument[1] == 0 ? "expected key=value" : "a part of the key is empty"));
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { apply_override(root, "~a=1"); }),
              HasSubstr("expected key=value or ~key"));
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { apply_override(root, "a"); }),
              HasSubstr("override: expected key=value or ~key, got \"a\""));
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { apply_override(root, "=1"); }), HasSubstr("expected key=value"));
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { apply_override(root, "a.b=1"); }),
              HasSubstr("\"a\" is not a mapping"));
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { apply_override(root, "a=[1, ']'"); }),
              HasSubstr("override: \"a=[1, ']'\": the bracket [ is not closed"));
  EXPECT_THAT(error_text(ErrorKind::Config, [&] { apply_override(root, "a=[{b: 1]"); }),
              HasSubstr("the bracket { is not closed"));
}

}  // namespace
}  // namespace lathe::config
