#include "lathe/base/json.h"

#include "expect_error.h"

namespace lathe {
namespace {

using testing::error_text;
using ::testing::HasSubstr;

std::string refusal(const std::string& text, JsonLimits limits = {}) {
  return error_text(ErrorKind::Data, [&] { parse_json(text, "f.json", limits); });
}

TEST(ParseJson, KeepsTheOrderOfKeys) {
  EXPECT_EQ(parse_json(R"({"z": [1, -2, 2.5, null, true], "a": {"b": "\u00e9"}})", "f").dump(),
            R"({"z":[1,-2,2.5,null,true],"a":{"b":"é"}})");
}

TEST(ParseJson, RefusesWhatNlohmannLetsPass) {
  EXPECT_EQ(refusal("{\"a\": 1,\n \"b\": {\"a\": 2},\n \"a\": 3}"), "f.json:3: duplicate key \"a\"");
  EXPECT_THAT(refusal("\xEF\xBB\xBF{}"), HasSubstr("f.json:1: begins with a byte-order mark"));
  EXPECT_THAT(refusal("[\n\"\xFF\"]"), HasSubstr("f.json:2: not valid UTF-8 at byte 3"));
  EXPECT_EQ(refusal(std::string("{}\n\0hidden", 10)), "f.json:2: bad JSON: NUL at byte 3");
  EXPECT_THAT(refusal("[[[1]]]", {.max_depth = 2}), HasSubstr("nested more than 2 deep"));
  EXPECT_THAT(refusal(std::string(1000000, '[')), HasSubstr("nested more than 64 deep"));
}

TEST(ParseJson, NamesTheLineOfASyntaxError) {
  EXPECT_THAT(refusal("{\n\"a\": 1,\n oops}"), HasSubstr("f.json:3: bad JSON: "));
  EXPECT_THAT(refusal(""), HasSubstr("f.json:1: bad JSON: "));
  EXPECT_THAT(refusal("{} x"), HasSubstr("f.json:1: bad JSON: "));
}

TEST(ParseJson, BoundsTheMessageWhateverTheTokenWas) {
  const std::string text = refusal("[\"" + std::string(1 << 20, 'x'));
  EXPECT_EQ(text, "f.json:1: bad JSON: syntax error while parsing value - invalid string: missing closing quote");
  EXPECT_LT(refusal(std::string(1 << 20, '9') + "e999999").size(), 300U);
}

TEST(JsonObject, ChecksTypesAndRanges) {
  const Json json = parse_json(R"({"n": -1, "x": 3.7, "big": 18446744073709551615, "o": {"s": 5}, "none": null})", "f");
  const JsonObject object(json, "f.json");
  EXPECT_EQ(object.integer("n", -5, 5), -1);
  EXPECT_EQ(object.integer("none", 0, 5, 3), 3);
  const auto text = [&](auto action) { return error_text(ErrorKind::Data, action); };
  EXPECT_EQ(text([&] { object.integer("n", 0, 5); }), "f.json: n: expected an integer from 0 to 5, got -1");
  EXPECT_EQ(text([&] { object.integer("x", 0, 5); }), "f.json: x: expected an integer from 0 to 5, got 3.7");
  EXPECT_THAT(text([&] { object.integer("big", 0, INT64_MAX); }), HasSubstr("got 18446744073709551615"));
  EXPECT_EQ(text([&] { object.object("o").string("s"); }), "f.json: o.s: expected a string, got 5");
  EXPECT_EQ(text([&] { object.number("none"); }), "f.json: none: expected a number, got nothing");
  EXPECT_EQ(text([&] { JsonObject(parse_json("[1]", "f"), "f.json"); }), "f.json: expected a JSON object, got [...]");
}

}  // namespace
}  // namespace lathe
