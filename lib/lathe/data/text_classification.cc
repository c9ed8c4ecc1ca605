#include "lathe/data/text_classification.h"

#include <utility>

#include "lathe/base/error.h"

namespace lathe::data {
namespace {

TextDatasetOptions dataset_options(const recipe::Recipe& recipe, std::vector<std::string> labels) {
  TextDatasetOptions options;
  if (recipe.data.format == recipe::DataFormat::TextLabel) options.format = TextFormat::TextLabel;
  if (recipe.data.format == recipe::DataFormat::Tokens) options.format = TextFormat::Tokens;
  options.text_field = recipe.data.field("text");
  options.label_field = recipe.data.field("label");
  options.labels = std::move(labels);
  return options;
}

std::vector<std::string> resolved(const std::vector<recipe::Path>& paths) {
  std::vector<std::string> files;
  for (const recipe::Path& path : paths) files.push_back(path.resolved);
  return files;
}

void prepare_tokens(const recipe::Recipe& recipe, const recipe::ResolvedModel& model, const TextDataset& dataset,
                    TextClassificationData& data) {
  if (!dataset.is_tokens()) {
    if (model.directory.path().empty()) {
      Diagnostic diagnostic = recipe.at("model.path");
      diagnostic.problem = "is required for its tokenizer";
      throw Error(ErrorKind::Config, diagnostic);
    }
    data.tokenizer = open_tokenizer(model.directory, model.config.arch);
  }
  data.vocab_size = arch::vocab_size(model.config.arch);
  data.tokenize = {static_cast<size_t>(model.max_length), recipe.data.truncation == recipe::Truncation::Left};
}

void drop_long_samples(TextClassificationData& data, TextDataset& dataset) {
  TextDataset kept = dataset;
  int64_t index = 0;
  kept.remove_if([&](const TextSample&) { return data.encode(dataset, index++).truncated; });
  dataset = std::move(kept);
}

}  // namespace

text::Tokenizer open_tokenizer(const formats::ModelDirectory& directory, const arch::Arch& arch) {
  text::Tokenizer tokenizer = text::Tokenizer::from_file(directory.tokenizer_path());
  if (tokenizer.vocab_size() > arch::vocab_size(arch)) {
    throw data_error(directory.tokenizer_path(),
                     Diagnostic::expected("at most the model's " + std::to_string(arch::vocab_size(arch)) + " tokens",
                                          std::to_string(tokenizer.vocab_size())));
  }
  const auto* bert = std::get_if<arch::BertArch>(&arch);
  if (bert != nullptr && tokenizer.type_vocab_size() > bert->type_vocab_size) {
    throw data_error_in(directory.tokenizer_path(), "post_processor",
                        Diagnostic::expected("type ids below the model's " + std::to_string(bert->type_vocab_size),
                                             std::to_string(tokenizer.type_vocab_size() - 1)));
  }
  if (tokenizer.num_special_tokens() >= arch::max_positions(arch)) {
    throw data_error_in(directory.tokenizer_path(), "post_processor",
                        Diagnostic::expected("fewer special tokens than the model's " +
                                                 std::to_string(arch::max_positions(arch)) + " positions",
                                             std::to_string(tokenizer.num_special_tokens())));
  }
  return tokenizer;
}

TextClassificationData open_text_classification(const recipe::Recipe& recipe, const recipe::ResolvedModel& model) {
  TextClassificationData data;
  data.train = TextDataset::open(resolved(recipe.data.train), dataset_options(recipe, model.labels));
  if (data.train.label_names().size() < 2) {
    Diagnostic diagnostic = recipe.at("data.train");
    diagnostic.problem = Diagnostic::expected("at least two labels in the training data",
                                              std::to_string(data.train.label_names().size()));
    throw Error(ErrorKind::Config, diagnostic);
  }
  if (recipe.data.eval_fraction > 0) data.eval = data.train.split_off(recipe.data.eval_fraction);
  if (!recipe.data.eval.empty())
    data.eval = TextDataset::open(resolved(recipe.data.eval), dataset_options(recipe, data.train.label_names()));
  prepare_tokens(recipe, model, data.train, data);
  if (recipe.data.truncation == recipe::Truncation::Drop) {
    drop_long_samples(data, data.train);
    if (data.eval) drop_long_samples(data, *data.eval);
  }
  if (data.train.size() == 0) throw data_error(recipe.data.train.front().resolved, "leaves no training samples");
  if (data.eval && data.eval->size() == 0)
    throw data_error(recipe.data.train.front().resolved, "leaves no evaluation samples");
  return data;
}

TextClassificationData open_evaluation(const recipe::Recipe& recipe, const recipe::ResolvedModel& model,
                                       const std::vector<std::string>& labels) {
  if (recipe.data.eval.empty()) {
    Diagnostic diagnostic = recipe.at("data.eval");
    diagnostic.problem = "is required to evaluate";
    diagnostic.hint = "add data.eval=FILE";
    throw Error(ErrorKind::Config, diagnostic);
  }
  TextClassificationData data;
  data.eval = TextDataset::open(resolved(recipe.data.eval), dataset_options(recipe, labels));
  prepare_tokens(recipe, model, *data.eval, data);
  return data;
}

}  // namespace lathe::data
