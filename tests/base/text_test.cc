#include "lathe/base/text.h"

#include <gtest/gtest.h>

namespace lathe {
namespace {

TEST(FindInvalidUtf8, FindsCutOverlongAndSurrogateForms) {
  EXPECT_EQ(find_invalid_utf8("aé中😀"), std::string_view::npos);
  EXPECT_EQ(find_invalid_utf8("ab\xC3"), 2u);
  EXPECT_EQ(find_invalid_utf8("\xC0\x80"), 0u);
  EXPECT_EQ(find_invalid_utf8("a\xED\xA0\x80"), 1u);
}

TEST(Printable, LeavesNoControlCharacterForTheTerminal) {
  EXPECT_EQ(printable("a\x1B[31mé\n\xFF"), "a\\x1B[31mé\\x0A\\xFF");
  EXPECT_EQ(printable("\xE2\x80\xAEgnp"), "\\xE2\\x80\\xAEgnp");  // right-to-left override
}

TEST(Quote, CutsAtACharacter) {
  EXPECT_EQ(quote("abc"), "\"abc\"");
  EXPECT_EQ(quote("a\"b"), "\"a\\\"b\"");
  EXPECT_EQ(quote("éé", 3), "\"é...\"");
}

TEST(Nearest, FindsASlipAndNothingElse) {
  const std::vector<std::string> keys = {"alpha", "dropout", "rank", "target_modules"};
  EXPECT_EQ(nearest("aplha", keys), "alpha");
  EXPECT_EQ(nearest("target_module", keys), "target_modules");
  EXPECT_EQ(nearest("optimizer", keys), "");
  EXPECT_EQ(nearest(std::string(1 << 20, 'x'), keys), "");
  const std::vector<std::string> texts(5000, std::string(100'000, 'x'));  // without a bound: hours
  EXPECT_EQ(nearest(std::string(100'000, 'y'), texts), "");
  EXPECT_EQ(suggest("y", {texts[0]}), "known: " + std::string(64, 'x') + "...");
  EXPECT_EQ(suggest("rnak", keys), "did you mean rank? known: alpha, dropout, rank, target_modules");
}

TEST(FormatBytes, UsesBinaryUnits) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(uint64_t{3} << 40), "3.0 TiB");
}

TEST(CutUtf8, KeepsWholeCharacters) {
  EXPECT_EQ(cut_utf8("abc", 3), "abc");
  EXPECT_EQ(cut_utf8("abc", 2), "ab");
  EXPECT_EQ(cut_utf8("a\xC3\xA4z", 2), "a");
  EXPECT_EQ(cut_utf8("a\xC3\xA4z", 3), "a\xC3\xA4");
  EXPECT_EQ(cut_utf8("\xF0\x9F\x98\x80", 3), "");
}

TEST(Base64, EqualsTheVectorsOfRfc4648) {
  const std::pair<const char*, const char*> vectors[] = {{"", ""},
                                                         {"f", "Zg=="},
                                                         {"fo", "Zm8="},
                                                         {"foo", "Zm9v"},
                                                         {"foob", "Zm9vYg=="},
                                                         {"fooba", "Zm9vYmE="},
                                                         {"foobar", "Zm9vYmFy"}};
  for (const auto& [bytes, text] : vectors) EXPECT_EQ(base64(bytes), text);
  EXPECT_EQ(base64("\xFF\xEF\xFE"), "/+/+");
}

TEST(EscapeHtml, EscapesEveryMarkupCharacter) {
  EXPECT_EQ(escape_html("<a b='\"&'>"), "&lt;a b=&#39;&quot;&amp;&#39;&gt;");
}

}  // namespace
}  // namespace lathe
