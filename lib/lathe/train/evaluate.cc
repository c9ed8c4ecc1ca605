#include "lathe/train/evaluate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/tensor.h>

#include <algorithm>

#include "lathe/base/error.h"
#include "lathe/nn/modules.h"

namespace lathe::train {
Evaluation evaluate(const Classifier& classifier, const data::TextClassificationData& data,
                    const data::TextDataset& dataset, int64_t batch_size, const std::function<bool()>& cancelled) {
  const at::NoGradGuard no_grad;
  const size_t num_labels = classifier.labels.size();
  ConfusionCounts counts(num_labels, std::vector<int64_t>(num_labels));
  double loss = 0;
  for (int64_t first = 0; first < dataset.size(); first += batch_size) {
    if (cancelled && cancelled())
      throw Error(ErrorKind::Interrupted, Diagnostic{"", 0, 0, "", "stopped during an evaluation", ""});
    const int64_t last = std::min(first + batch_size, dataset.size());
    std::vector<text::Encoding> encodings;
    std::vector<int64_t> labels;
    for (int64_t i = first; i < last; ++i) {
      encodings.push_back(data.encode(dataset, i));
      labels.push_back(dataset.sample(i).label);
    }
    const Tensor logits = predict_logits(classifier, encodings);
    const Tensor truth = at::tensor(labels, at::kLong);
    loss += nn::cross_entropy_sum(logits, truth).item<double>();
    const Tensor predicted = logits.argmax(1);
    for (int64_t i = 0; i < last - first; ++i) {
      ++counts[static_cast<size_t>(labels[static_cast<size_t>(i)])]
              [static_cast<size_t>(predicted.const_data_ptr<int64_t>()[i])];
    }
  }
  return {loss / static_cast<double>(std::max<int64_t>(1, dataset.size())), accuracy_of(counts), f1_of(counts),
          dataset.size()};
}

}  // namespace lathe::train
