#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "console.h"
#include "inference.h"
#include "lathe/base/error.h"
#include "lathe/base/text.h"
#include "lathe/io/tensors.h"
#include "pixels.h"
#include "texts.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

text::Encoding parse_ids(const std::string& list, const train::Classifier& classifier) {
  text::Encoding encoding;
  std::istringstream parts(list);
  for (std::string part; std::getline(parts, part, ',');) {
    int64_t id = -1;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), id);
    if (error != std::errc() || end != part.data() + part.size() || id < 0 || id >= arch::vocab_size(classifier.arch)) {
      throw Error(ErrorKind::Config,
                  Diagnostic{"--ids", 0, 0, "",
                             Diagnostic::expected(
                                 "ids from 0 to " + std::to_string(arch::vocab_size(classifier.arch) - 1), quote(part)),
                             ""});
    }
    encoding.ids.push_back(id);
  }
  if (static_cast<int64_t>(encoding.ids.size()) > arch::max_positions(classifier.arch)) {
    throw data_error("--ids",
                     Diagnostic::expected("at most " + std::to_string(arch::max_positions(classifier.arch)) + " ids",
                                          std::to_string(encoding.ids.size())));
  }
  encoding.type_ids.assign(encoding.ids.size(), 0);
  return encoding;
}

// ids and mask of all samples, right-padded.
io::NamedTensors padded_inputs(const std::vector<text::Encoding>& encodings) {
  size_t longest = 0;
  for (const auto& encoding : encodings) longest = std::max(longest, encoding.ids.size());
  const at::Tensor ids = at::zeros({static_cast<int64_t>(encodings.size()), static_cast<int64_t>(longest)}, at::kLong);
  const at::Tensor mask = at::zeros_like(ids);
  for (size_t i = 0; i < encodings.size(); ++i) {
    std::copy(encodings[i].ids.begin(), encodings[i].ids.end(), ids.data_ptr<int64_t>() + i * longest);
    std::fill_n(mask.data_ptr<int64_t>() + i * longest, encodings[i].ids.size(), 1);
  }
  return {{"input_ids", ids}, {"attention_mask", mask}};
}

at::Tensor image_logits(const CommandLine& line, const train::Classifier& classifier) {
  const PixelSource pixels(line, classifier);
  std::vector<at::Tensor> rows;
  for (int64_t first = 0; first < pixels.size(); first += static_cast<int64_t>(kInferenceBatchSize))
    rows.push_back(train::predict_logits(classifier, pixels.batch(first)));
  return at::cat(rows);
}

}  // namespace

int run_logits(const CommandLine& line) {
  if (line.ids.empty() && !line.text && line.jsonl.empty() && line.images.empty() && line.pixels.empty()) {
    throw Error(ErrorKind::Config,
                Diagnostic{"lathe logits", 0, 0, "", "expected --ids, --text, --jsonl, --image or --pixels", ""});
  }
  std::vector<std::string> inputs = line.images;
  inputs.insert(inputs.end(), {line.model, line.adapter, line.jsonl, line.pixels});
  require_no_input(line.out, inputs);
  require_replaceable(line.out, ".safetensors");
  const train::Classifier classifier =
      train::load_classifier(line.model, line.adapter, recipe::StorageType::Auto,
                             line.compute == "bfloat16" ? recipe::StorageType::BFloat16 : recipe::StorageType::Float32);
  require_inputs_for(line, classifier);
  if (classifier.image) {
    io::write_safetensors(line.out, {{"logits", finite_logits(line, image_logits(line, classifier))}});
    return 0;
  }
  const auto encodings = line.ids.empty() ? encode_inputs(line, classifier, line.truncate)
                                          : std::vector<text::Encoding>{parse_ids(line.ids, classifier)};
  std::vector<at::Tensor> rows;
  for (size_t first = 0; first < encodings.size(); first += kInferenceBatchSize) {
    const size_t last = std::min(first + kInferenceBatchSize, encodings.size());
    rows.push_back(train::predict_logits(classifier, {encodings.begin() + static_cast<ptrdiff_t>(first),
                                                      encodings.begin() + static_cast<ptrdiff_t>(last)}));
  }
  io::NamedTensors tensors = padded_inputs(encodings);
  tensors.emplace_back("logits", finite_logits(line, at::cat(rows)));
  io::write_safetensors(line.out, tensors);
  return 0;
}

}  // namespace lathe::app
