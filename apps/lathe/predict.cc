#include <ATen/ops/softmax.h>

#include <algorithm>

#include "console.h"
#include "inference.h"
#include "lathe/base/error.h"
#include "lathe/base/json.h"
#include "lathe/base/text.h"
#include "pixels.h"
#include "texts.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

void print_labels(const CommandLine& line, const train::Classifier& classifier, const at::Tensor& logits) {
  const at::Tensor probabilities = at::softmax(logits, 1);
  for (int64_t i = 0; i < probabilities.size(0); ++i) {
    Json by_label = Json::object();
    for (size_t label = 0; label < classifier.labels.size(); ++label) {
      by_label[classifier.labels[label]] = probabilities[i][static_cast<int64_t>(label)].item<float>();
    }
    const std::string& best = classifier.labels[static_cast<size_t>(probabilities[i].argmax().item<int64_t>())];
    print_result(line.json ? Json{{"label", best}, {"probabilities", by_label}}.dump() + "\n"
                           : printable(best) + "  " + printable(by_label.dump()) + "\n");
  }
}

}  // namespace

int run_predict(const CommandLine& line) {
  if (!line.text && line.jsonl.empty() && line.images.empty()) {
    throw Error(ErrorKind::Config, Diagnostic{"lathe predict", 0, 0, "", "expected --text, --jsonl or --image", ""});
  }
  const train::Classifier classifier = train::load_classifier(line.model, line.adapter);
  require_inputs_for(line, classifier);
  if (classifier.image) {
    const PixelSource pixels(line, classifier);
    for (int64_t first = 0; first < pixels.size(); first += static_cast<int64_t>(kInferenceBatchSize))
      print_labels(line, classifier, finite_logits(line, train::predict_logits(classifier, pixels.batch(first))));
    return 0;
  }
  const auto encodings = encode_inputs(line, classifier, /*truncate=*/true);
  for (size_t first = 0; first < encodings.size(); first += kInferenceBatchSize) {
    const std::vector<text::Encoding> batch(
        encodings.begin() + static_cast<ptrdiff_t>(first),
        encodings.begin() + static_cast<ptrdiff_t>(std::min(first + kInferenceBatchSize, encodings.size())));
    print_labels(line, classifier, finite_logits(line, train::predict_logits(classifier, batch)));
  }
  return 0;
}

}  // namespace lathe::app
