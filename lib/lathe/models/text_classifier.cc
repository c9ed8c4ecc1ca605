#include "lathe/models/text_classifier.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>
#include <variant>

#include "lathe/models/bert.h"

namespace lathe::models {

TokenBatch pack_tokens(const std::vector<std::vector<int64_t>>& input_ids,
                       const std::vector<std::vector<int64_t>>& type_ids) {
  auto offsets = std::make_shared<std::vector<int64_t>>(1, 0);
  for (const auto& ids : input_ids) offsets->push_back(offsets->back() + static_cast<int64_t>(ids.size()));
  TokenBatch batch;
  batch.input_ids = at::empty({offsets->back()}, at::kLong);
  batch.type_ids = at::empty({offsets->back()}, at::kLong);
  batch.position_ids = at::empty({offsets->back()}, at::kLong);
  for (size_t b = 0; b < input_ids.size(); ++b) {
    const int64_t first = (*offsets)[b];
    std::copy(input_ids[b].begin(), input_ids[b].end(), batch.input_ids.data_ptr<int64_t>() + first);
    std::copy(type_ids[b].begin(), type_ids[b].end(), batch.type_ids.data_ptr<int64_t>() + first);
    int64_t* positions = batch.position_ids.data_ptr<int64_t>() + first;
    std::iota(positions, positions + input_ids[b].size(), 0);
  }
  batch.rows = std::move(offsets);
  return batch;
}

std::shared_ptr<TextClassifier> build_text_classifier(const arch::Arch& arch, int64_t num_labels) {
  TORCH_CHECK_VALUE(!arch::sees_images(arch), "build_text_classifier: expected the shape of a text model");
  auto model = std::make_shared<BertForSequenceClassification>(std::get<arch::BertArch>(arch), num_labels);
  for (Tensor& parameter : model->parameters()) parameter.requires_grad_(false);
  return model;
}

}  // namespace lathe::models
