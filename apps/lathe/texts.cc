#include "texts.h"

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::app {

std::vector<text::Encoding> encode_inputs(const CommandLine& line, const train::Classifier& classifier, bool truncate) {
  const auto directory = formats::ModelDirectory::open(classifier.model_path);
  const text::Tokenizer tokenizer = data::open_tokenizer(directory, classifier.arch);
  const auto limit = static_cast<size_t>(recipe::default_max_length(directory, classifier.arch));
  std::vector<text::Encoding> encodings;
  const auto add = [&](const std::string& text, const std::string& place, int number) {
    encodings.push_back(tokenizer.encode(text, {.max_length = limit}));
    if (encodings.back().truncated && !truncate) {
      throw data_error_at(place, number, "the text is longer than the model's " + std::to_string(limit) + " tokens",
                          "--truncate cuts it");
    }
  };
  if (!line.jsonl.empty()) {
    const auto dataset = data::TextDataset::open(
        {line.jsonl}, {.format = data::TextFormat::TextLabel, .labels = {}, .labels_required = false});
    for (int64_t i = 0; i < dataset.size(); ++i) add(dataset.sample(i).text, line.jsonl, dataset.sample(i).line);
  } else {
    const std::string text = line.text.value_or("");
    if (find_invalid_utf8(text) != std::string::npos)
      throw Error(ErrorKind::Config,
                  Diagnostic{"--text", 0, 0, "", Diagnostic::expected("UTF-8 text", quote(text)), ""});
    add(text, "--text", 0);
  }
  return encodings;
}

}  // namespace lathe::app
