#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/data/text_dataset.h"
#include "lathe/recipe/resolve.h"
#include "lathe/text/tokenizer.h"

namespace lathe::data {

/// What a text classification recipe trains and evaluates on, all of it read and checked.
struct TextClassificationData {
  TextDataset train;
  std::optional<TextDataset> eval;
  std::optional<text::Tokenizer> tokenizer;  ///< none for the tokens format
  int64_t vocab_size = 0;                    ///< of the model
  TokenizeOptions tokenize;

  text::Encoding encode(const TextDataset& dataset, int64_t index) const {
    return data::tokenize(dataset, index, tokenizer ? &*tokenizer : nullptr, vocab_size, tokenize);
  }
};

/// Opens data.train and data.eval (or holds out data.eval_fraction), with `model`'s labels or those of the training
/// data. Throws Error{Data}; Error{Config} when fewer than two labels occur.
TextClassificationData open_text_classification(const recipe::Recipe& recipe, const recipe::ResolvedModel& model);

/// data.eval alone, for an evaluation without training. Throws Error{Config} when the recipe names none.
TextClassificationData open_evaluation(const recipe::Recipe& recipe, const recipe::ResolvedModel& model,
                                       const std::vector<std::string>& labels);

/// The tokenizer of a model directory. Throws Error{Data} when its vocabulary is larger than the model's.
text::Tokenizer open_tokenizer(const formats::ModelDirectory& directory, const arch::Arch& arch);

}  // namespace lathe::data
