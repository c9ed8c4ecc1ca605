#include "lathe/data/text_dataset.h"

#include <set>

#include "expect_error.h"
#include "temporary_directory.h"

namespace lathe::data {
namespace {

using ::testing::ElementsAre;
using testing::error_text;
using ::testing::HasSubstr;
using testing::TemporaryDirectory;

TextDataset open_text(const std::string& content, const TextDatasetOptions& options = {}) {
  const TemporaryDirectory directory;
  return TextDataset::open({directory.write("d.jsonl", content)}, options);
}

std::string dataset_refusal(const std::string& content, const TextDatasetOptions& options = {}) {
  return error_text(ErrorKind::Data, [&] { open_text(content, options); });
}

TEST(TextDataset, ReadsLinesAndSortsTheLabels) {
  const TextDataset data = open_text(
      "{\"text\": \"a\", \"label\": \"spam\"}\r\n\n{\"text\": \"b\\u2028c\", \"label\": \"ham\"}\n{\"text\": \"\", "
      "\"label\": 7}");
  EXPECT_EQ(data.size(), 3);
  EXPECT_THAT(data.label_names(), ElementsAre("7", "ham", "spam"));
  EXPECT_EQ(data.sample(0).label, 2);
  EXPECT_EQ(data.sample(1).text, "b\u2028c");
  EXPECT_EQ(data.sample(2).line, 4);
}

TEST(TextDataset, ReadsTokensWithoutBeingTold) {
  const TextDataset data =
      open_text("{\"input_ids\": [5, 6], \"label\": \"x\"}\n{\"input_ids\": [7], \"label\": \"y\"}\n");
  EXPECT_TRUE(data.is_tokens());
  EXPECT_THAT(tokenize(data, 0, nullptr, 10, {.max_length = 1}).ids, ElementsAre(5));
  EXPECT_THAT(tokenize(data, 0, nullptr, 10, {.max_length = 1, .keep_end = true}).ids, ElementsAre(6));
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { tokenize(data, 1, nullptr, 7, {}); }),
              HasSubstr("d.jsonl:2: input_ids: expected ids below the vocabulary's 7, got 7"));
}

TEST(TextDataset, NamesFileAndLineOfEachMistake) {
  EXPECT_THAT(dataset_refusal("{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"a\"\n"),
              HasSubstr("d.jsonl:2: bad JSON"));
  EXPECT_THAT(dataset_refusal("{\"text\": 5, \"label\": \"x\"}\n"),
              HasSubstr("d.jsonl:1: text: expected a string, got 5"));
  EXPECT_THAT(dataset_refusal("{\"text\": \"a\"}\n"),
              HasSubstr("d.jsonl:1: label: expected a string or an integer, got nothing"));
  EXPECT_THAT(dataset_refusal("{\"txt\": \"a\", \"label\": \"x\"}\n"),
              HasSubstr("d.jsonl:1: text: expected a string, got nothing"));
  EXPECT_THAT(dataset_refusal("[1]\n"), HasSubstr("d.jsonl:1: expected a JSON object, got [...]"));
  EXPECT_THAT(dataset_refusal(""), HasSubstr("d.jsonl: holds no samples"));
  EXPECT_THAT(dataset_refusal("\n\n"), HasSubstr("d.jsonl: holds no samples"));
  EXPECT_THAT(dataset_refusal("{\"text\": \"a\", \"label\": \"spma\"}\n", {.labels = {"ham", "spam"}}),
              HasSubstr("d.jsonl:1: label: unknown label \"spma\" (did you mean spam?"));
  EXPECT_THAT(dataset_refusal("{\"input_ids\": [], \"label\": \"x\"}\n"),
              HasSubstr("expected an array of ids, got []"));
  EXPECT_THAT(dataset_refusal("{\"input_ids\": [-1], \"label\": \"x\"}\n"), HasSubstr("expected ids >= 0, got -1"));
}

TEST(TextDataset, ReportsTheFirstTenMistakesAndCountsTheRest) {
  std::string content;
  for (int i = 0; i < 25; ++i) content += "{\"label\": \"x\"}\n";
  const std::string text = dataset_refusal(content);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 9);
  EXPECT_THAT(text, HasSubstr("15 more lines are wrong"));
}

TEST(TextDataset, SplitsTwinsToOneSide) {
  std::string content;
  for (int i = 0; i < 400; ++i) {
    content += "{\"text\": \"mail " + std::to_string(i) + "\", \"label\": \"a\"}\n{\"text\": \"  mail\\n" +
               std::to_string(i) + " \", \"label\": \"b\"}\n";
  }
  TextDataset train = open_text(content);
  const TextDataset held_out = train.split_off(0.25);
  EXPECT_EQ(train.size() + held_out.size(), 800);
  EXPECT_NEAR(static_cast<double>(held_out.size()), 200, 4 * 2 * std::sqrt(400 * 0.25 * 0.75));
  std::set<int> pairs;
  for (int64_t i = 0; i < held_out.size(); ++i) pairs.insert((held_out.sample(i).line - 1) / 2);
  EXPECT_EQ(static_cast<int64_t>(pairs.size()) * 2, held_out.size());
}

TEST(TextDataset, HasAnotherFingerprintWhenAnythingChanges) {
  const auto fingerprint = [](const char* content) { return open_text(content).fingerprint(); };
  const char* content = "{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"b\", \"label\": \"y\"}\n";
  EXPECT_EQ(fingerprint(content), fingerprint(content));
  EXPECT_NE(fingerprint(content),
            fingerprint("{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"c\", \"label\": \"y\"}\n"));
  EXPECT_NE(fingerprint(content),
            fingerprint("{\"text\": \"b\", \"label\": \"y\"}\n{\"text\": \"a\", \"label\": \"x\"}\n"));
  EXPECT_NE(fingerprint(content),
            fingerprint("{\"text\": \"a\", \"label\": \"y\"}\n{\"text\": \"b\", \"label\": \"x\"}\n"));
}

}  // namespace
}  // namespace lathe::data
