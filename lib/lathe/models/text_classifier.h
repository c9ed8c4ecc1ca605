#pragma once

#include <memory>

#include "lathe/arch/arch.h"
#include "lathe/nn/attention.h"
#include "lathe/nn/linear.h"
#include "lathe/nn/pass.h"

namespace lathe::models {

using at::Tensor;

/// The tokens of a batch, one sample after another, without padding.
struct TokenBatch {
  Tensor input_ids;     ///< [N] int64
  Tensor type_ids;      ///< [N] int64
  Tensor position_ids;  ///< [N] int64, counted within each sample
  nn::RowOffsets rows;  ///< each sample's rows among the N

  int64_t num_samples() const { return static_cast<int64_t>(rows->size()) - 1; }
};

/// Packs samples of ids and type ids (of equal lengths, at least one token each) into one batch.
TokenBatch pack_tokens(const std::vector<std::vector<int64_t>>& input_ids,
                       const std::vector<std::vector<int64_t>>& type_ids);

/// A model that gives one row of logits per sample. Its parameters are named as in transformers' class for sequence
/// classification.
class TextClassifier : public nn::SlottedModule {
 public:
  using nn::SlottedModule::SlottedModule;
  /// [num_samples, num_labels]. Dropouts act when pass.training.
  virtual Tensor forward(const TokenBatch& batch, const nn::Pass& pass) = 0;
};

/// The skeleton of a family's classifier: modules and shapes, hollow parameters, nothing trainable.
std::shared_ptr<TextClassifier> build_text_classifier(const arch::Arch& arch, int64_t num_labels);

}  // namespace lathe::models
