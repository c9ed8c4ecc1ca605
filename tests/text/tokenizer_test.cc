#include "lathe/text/tokenizer.h"

#include "expect_error.h"
#include "temporary_directory.h"

namespace lathe::text {
namespace {

using ::testing::ElementsAre;
using testing::error_text;
using ::testing::HasSubstr;
using testing::TemporaryDirectory;

// A whole WordPiece tokenizer with a vocabulary that can be read.
Json small_tokenizer() {
  Json json = Json::parse(R"({
    "truncation": {"max_length": 3}, "padding": {"strategy": {"Fixed": 9}},
    "added_tokens": [
      {"id": 0, "content": "[PAD]", "special": true, "normalized": false},
      {"id": 1, "content": "[UNK]", "special": true, "normalized": false},
      {"id": 2, "content": "[CLS]", "special": true, "normalized": false},
      {"id": 3, "content": "[SEP]", "special": true, "normalized": false}],
    "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
      "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2]}, "[SEP]": {"id": "[SEP]", "ids": [3]}}},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 10, "vocab": {}}
  })");
  int id = 0;
  for (const char* token : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##want", "##ed", "want", "##s", "running", ",",
                            "中", "##e", "cafe", "!"}) {
    json["model"]["vocab"][token] = id++;
  }
  return json;
}

Tokenizer load_tokenizer(const Json& json) {
  const TemporaryDirectory directory;
  return Tokenizer::from_file(directory.write("tokenizer.json", json.dump()));
}

std::string tokenizer_refusal(const Json& json) {
  return error_text(ErrorKind::Data, [&] { load_tokenizer(json); });
}

TEST(Tokenizer, SplitsLowersStripsAndPieces) {
  const Tokenizer tokenizer = load_tokenizer(small_tokenizer());
  EXPECT_THAT(tokenizer.encode("UNwanted, running").ids, ElementsAre(2, 4, 5, 6, 10, 9, 3));
  EXPECT_THAT(tokenizer.encode("Cafe\u0301\tCAF\u00C9\x01!").ids, ElementsAre(2, 13, 13, 14, 3));
  EXPECT_THAT(tokenizer.encode("want中wants").ids, ElementsAre(2, 7, 11, 7, 8, 3));
  EXPECT_THAT(tokenizer.encode("").ids, ElementsAre(2, 3));
  EXPECT_THAT(tokenizer.encode("wantx").ids, ElementsAre(2, 1, 3))
      << "a word that cannot be covered is one unknown token";
  EXPECT_THAT(tokenizer.encode("wantwantwant").ids, ElementsAre(2, 1, 3)) << "longer than max_input_chars_per_word";
}

TEST(Tokenizer, FindsSpecialTokensInTheRawText) {
  const Tokenizer tokenizer = load_tokenizer(small_tokenizer());
  EXPECT_THAT(tokenizer.encode("want[SEP]want [cls]", {.special_tokens = false}).ids, ElementsAre(7, 3, 7, 1, 1, 1));
}

Json with_added(std::initializer_list<Json> tokens) {
  Json json = small_tokenizer();
  int id = 15;
  for (Json token : tokens) {
    token["id"] = id++;
    json["added_tokens"].push_back(token);
  }
  return json;
}

TEST(Tokenizer, FindsNormalizedTokensInTheNormalizedText) {
  const Tokenizer tokenizer = load_tokenizer(with_added({{{"content", "COVID19"}},
                                                         {{"content", "M\u00FCller"}},
                                                         {{"content", "San Jose"}},
                                                         {{"content", "Raw"}, {"normalized", false}}}));
  EXPECT_THAT(tokenizer.encode("covid19 COVID19", {.special_tokens = false}).ids, ElementsAre(15, 15));
  EXPECT_THAT(tokenizer.encode("want muller Mu\u0308LLER", {.special_tokens = false}).ids, ElementsAre(7, 16, 16));
  EXPECT_THAT(tokenizer.encode("San Jose, SAN\u00A0JOSE", {.special_tokens = false}).ids, ElementsAre(17, 10, 17));
  EXPECT_THAT(tokenizer.encode("Raw raw", {.special_tokens = false}).ids, ElementsAre(18, 1));
  const std::string far = std::string(511, ' ') + "San Jose";
  EXPECT_THAT(tokenizer.encode(far, {.special_tokens = false}).ids, ElementsAre(17)) << "across a piece's end";
  EXPECT_THAT(tokenizer_refusal(with_added({{{"content", "\u0301"}}})), HasSubstr("is normalized to nothing"));
}

TEST(Tokenizer, KnowsTheWordsAroundSingleWordTokens) {
  const Tokenizer tokenizer =
      load_tokenizer(with_added({{{"content", "foo"}, {"single_word", true}}, {{"content", "oo"}}}));
  for (const char* beside : {" ", "\u00D7", "\u2014", "\U0001F600", "!"}) {
    const auto ids = tokenizer.encode(beside + std::string("foo") + beside, {.special_tokens = false}).ids;
    EXPECT_EQ(std::count(ids.begin(), ids.end(), 15), 1) << beside;
  }
  for (const char* beside : {"a", "_", "7", "\u00E9", "\u4E2D", "\u24B6", "\u0967"}) {
    for (const std::string& text : {beside + std::string("foo"), std::string("foo") + beside}) {
      const auto ids = tokenizer.encode(text, {.special_tokens = false}).ids;
      EXPECT_EQ(std::count(ids.begin(), ids.end(), 15), text.find("\u4E2D") == std::string::npos ? 0 : 1) << text;
      EXPECT_EQ(std::count(ids.begin(), ids.end(), 16), 0) << "passed over whole: " << text;
    }
  }
}

TEST(Tokenizer, StripsEveryWhiteSpaceBesideATokenThatAsksForIt) {
  const Tokenizer tokenizer =
      load_tokenizer(with_added({{{"content", "<m>"}, {"lstrip", true}, {"rstrip", true}, {"normalized", false}}}));
  EXPECT_THAT(tokenizer.encode("want \u2003<m>\u3000\n want", {.special_tokens = false}).ids, ElementsAre(7, 15, 7));
}

TEST(Tokenizer, GivesTypeIdsOfTheTemplate) {
  EXPECT_THAT(load_tokenizer(small_tokenizer()).encode("want want").type_ids, ElementsAre(0, 0, 0, 1));
  EXPECT_EQ(load_tokenizer(small_tokenizer()).type_vocab_size(), 2);
  EXPECT_EQ(load_tokenizer(small_tokenizer()).num_special_tokens(), 2);
}

TEST(Tokenizer, CutsAtEitherEndAndKeepsSpecialTokens) {
  const Tokenizer tokenizer = load_tokenizer(small_tokenizer());
  const Encoding right = tokenizer.encode("un want running", {.max_length = 4}),
                 left = tokenizer.encode("un want running", {.max_length = 4, .keep_end = true});
  EXPECT_THAT(right.ids, ElementsAre(2, 4, 7, 3));
  EXPECT_THAT(left.ids, ElementsAre(2, 7, 9, 3));
  EXPECT_TRUE(right.truncated);
  EXPECT_FALSE(tokenizer.encode("un want running", {.max_length = 5}).truncated);
  EXPECT_THAT(tokenizer.encode("un want", {.max_length = 2}).ids, ElementsAre(2, 3));
}

TEST(Tokenizer, CutTextEqualsTheStartOfTheWhole) {
  const Tokenizer tokenizer = load_tokenizer(small_tokenizer());
  std::string text;
  for (int i = 0; i < 5000; ++i) text += i % 3 == 0 ? "Unwanted, " : i % 3 == 1 ? "中want\n" : "caf\u00E9s ";
  const std::vector<int64_t> all = tokenizer.encode(text, {.special_tokens = false}).ids;
  for (const size_t length : {1u, 17u, 128u, 3000u}) {
    EXPECT_EQ(tokenizer.encode(text, {.special_tokens = false, .max_length = length}).ids,
              std::vector<int64_t>(all.begin(), all.begin() + static_cast<ptrdiff_t>(length)));
  }
}

TEST(Tokenizer, DecodesPiecesAndKeepsSpecialTokens) {
  const Tokenizer tokenizer = load_tokenizer(small_tokenizer());
  EXPECT_EQ(tokenizer.decode({2, 4, 5, 6, 10, 9, 14, 3}), "[CLS] unwanted, running! [SEP]");
  EXPECT_EQ(tokenizer.decode({9999, -1, 7}), "want");
}

TEST(Tokenizer, RefusesWhatItDoesNotKnow) {
  const auto with = [](const char* pointer, Json value) {
    Json json = small_tokenizer();
    json[Json::json_pointer(pointer)] = std::move(value);
    return json;
  };
  EXPECT_THAT(tokenizer_refusal(with("/normalizer/type", "NFKC")),
              HasSubstr("normalizer.type: \"NFKC\" is not supported yet (supported: BertNormalizer, Sequence)"));
  EXPECT_THAT(tokenizer_refusal(with("/pre_tokenizer/type", "ByteLevel")),
              HasSubstr("pre_tokenizer.type: \"ByteLevel\" is not supported yet"));
  EXPECT_THAT(tokenizer_refusal(with("/model/type", "BPE")), HasSubstr("model.type: \"BPE\" is not supported yet"));
  EXPECT_THAT(tokenizer_refusal(with("/post_processor/type", "RobertaProcessing")), HasSubstr("post_processor.type"));
  EXPECT_THAT(tokenizer_refusal(with("/decoder/type", "BPEDecoder")), HasSubstr("decoder.type"));
  EXPECT_THAT(tokenizer_refusal(with("/model/vocab/want", 900)),
              HasSubstr("model.vocab.want: expected an integer from 0 to 14, got 900"));
  EXPECT_THAT(tokenizer_refusal(with("/model/vocab/want", 4)), HasSubstr("is taken by"));
  EXPECT_THAT(tokenizer_refusal(with("/model/unk_token", "<unk>")),
              HasSubstr("model.unk_token: \"<unk>\" is not in the vocabulary"));
  EXPECT_THAT(tokenizer_refusal(with("/added_tokens/0/id", 7)), HasSubstr("is taken by \"want\""));
  EXPECT_THAT(tokenizer_refusal(with("/post_processor/special_tokens/[CLS]/ids", Json::array({99}))),
              HasSubstr("expected ids of the vocabulary, got 99"));
  EXPECT_THAT(tokenizer_refusal(with("/post_processor/single", Json::array())),
              HasSubstr("expected one Sequence, got 0"));
}

TEST(Tokenizer, RefusesNestedSequencesWithoutEnd) {
  Json normalizer = {{"type", "BertNormalizer"}};
  for (int i = 0; i < 20; ++i) normalizer = {{"type", "Sequence"}, {"normalizers", Json::array({normalizer})}};
  Json json = small_tokenizer();
  json["normalizer"] = normalizer;
  EXPECT_THAT(tokenizer_refusal(json), HasSubstr("tokenizer.json"));
}

}  // namespace
}  // namespace lathe::text
