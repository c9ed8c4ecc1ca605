#include "lathe/data/text_dataset.h"

#include <xxhash.h>

#include <algorithm>
#include <map>
#include <set>

#include "lathe/base/error.h"
#include "lathe/base/text.h"
#include "lathe/data/lines.h"

namespace lathe::data {
namespace {

std::vector<int64_t> read_ids(const JsonObject& line) {
  const Json* value = line.find("input_ids");
  if (value == nullptr || !value->is_array() || value->empty()) {
    throw line.error("input_ids",
                     Diagnostic::expected("an array of ids", value == nullptr ? "nothing" : describe(*value)));
  }
  std::vector<int64_t> ids;
  for (const Json& id : *value) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(INT32_MAX)) {
      throw line.error("input_ids", Diagnostic::expected("ids >= 0", describe(id)));
    }
    ids.push_back(id.get<int64_t>());
  }
  return ids;
}

uint64_t content_hash(const TextSample& sample) {
  if (!sample.input_ids.empty()) return XXH3_64bits(sample.input_ids.data(), sample.input_ids.size() * sizeof(int64_t));
  std::string squeezed;
  bool space = false;
  for (const char c : sample.text) {
    if (std::isspace(static_cast<unsigned char>(c)) != 0) {
      space = true;
      continue;
    }
    if (space && !squeezed.empty()) squeezed += ' ';
    space = false;
    squeezed += c;
  }
  return XXH3_64bits(squeezed.data(), squeezed.size());
}

}  // namespace

void TextDataset::read_file(const std::string& path, const TextDatasetOptions& options) {
  const int file_index = static_cast<int>(files_.size());
  files_.push_back(path);
  const size_t first = samples_.size();
  Mistakes mistakes;
  for_each_json_line(path, mistakes, [&](const JsonObject& line, int number) {
    if (samples_.empty())
      tokens_ = options.format == TextFormat::Tokens ||
                (options.format == TextFormat::Auto && line.find("input_ids") != nullptr);
    TextSample sample;
    sample.file = file_index;
    sample.line = number;
    if (tokens_) {
      sample.input_ids = read_ids(line);
    } else {
      sample.text = line.string(options.text_field);
    }
    const bool labelled = options.labels_required || line.find(options.label_field) != nullptr;
    raw_labels_.push_back(labelled ? read_label(line, options.label_field) : "");
    sample.label = labelled ? 0 : -1;
    samples_.push_back(std::move(sample));
  });
  mistakes.throw_if_any();
  if (samples_.size() == first)
    throw data_error(path, "holds no samples", R"(one JSON object per line: {"text": ..., "label": ...})");
}

TextDataset TextDataset::open(const std::vector<std::string>& files, const TextDatasetOptions& options) {
  TextDataset dataset;
  for (const std::string& path : files) dataset.read_file(path, options);
  dataset.label_names_ = options.labels;
  if (dataset.label_names_.empty()) {
    std::set<std::string> distinct;
    for (size_t i = 0; i < dataset.samples_.size(); ++i) {
      if (dataset.samples_[i].label >= 0) distinct.insert(dataset.raw_labels_[i]);
    }
    dataset.label_names_.assign(distinct.begin(), distinct.end());
  }
  std::map<std::string, int64_t> index;
  for (size_t i = 0; i < dataset.label_names_.size(); ++i) index[dataset.label_names_[i]] = static_cast<int64_t>(i);
  Mistakes mistakes;
  for (size_t i = 0; i < dataset.samples_.size(); ++i) {
    TextSample& sample = dataset.samples_[i];
    if (sample.label < 0) continue;
    const auto found = index.find(dataset.raw_labels_[i]);
    if (found != index.end()) {
      sample.label = found->second;
    } else {
      mistakes.add({dataset.files_[static_cast<size_t>(sample.file)], sample.line, 0, options.label_field,
                    "unknown label " + quote(dataset.raw_labels_[i]),
                    mistakes.is_full() ? "" : suggest(dataset.raw_labels_[i], dataset.label_names_)});
    }
  }
  mistakes.throw_if_any();
  dataset.raw_labels_.clear();
  return dataset;
}

uint64_t TextDataset::fingerprint() const {
  uint64_t hash = 0;
  for (const TextSample& sample : samples_) {
    const XXH64_hash_t text = XXH3_64bits_withSeed(sample.text.data(), sample.text.size(), hash);
    const XXH64_hash_t ids =
        XXH3_64bits_withSeed(sample.input_ids.data(), sample.input_ids.size() * sizeof(int64_t), text);
    hash = ids + static_cast<uint64_t>(sample.label);
  }
  return hash;
}

TextDataset TextDataset::split_off(double fraction) {
  TextDataset held_out;
  held_out.files_ = files_;
  held_out.label_names_ = label_names_;
  held_out.tokens_ = tokens_;
  const auto is_held_out = [fraction](const TextSample& sample) {
    return static_cast<double>(content_hash(sample) >> 11) * 0x1.0p-53 < fraction;
  };
  const auto border = std::stable_partition(samples_.begin(), samples_.end(),
                                            [&](const TextSample& sample) { return !is_held_out(sample); });
  held_out.samples_.assign(std::make_move_iterator(border), std::make_move_iterator(samples_.end()));
  samples_.erase(border, samples_.end());
  return held_out;
}

text::Encoding tokenize(const TextDataset& dataset, int64_t index, const text::Tokenizer* tokenizer, int64_t vocab_size,
                        const TokenizeOptions& options) {
  const TextSample& sample = dataset.sample(index);
  if (!dataset.is_tokens())
    return tokenizer->encode(sample.text,
                             {.special_tokens = true, .max_length = options.max_length, .keep_end = options.keep_end});
  for (const int64_t id : sample.input_ids) {
    if (id < vocab_size) continue;
    Diagnostic diagnostic{dataset.files()[static_cast<size_t>(sample.file)],
                          sample.line,
                          0,
                          "input_ids",
                          "",
                          "another tokenizer made these ids"};
    diagnostic.problem =
        Diagnostic::expected("ids below the vocabulary's " + std::to_string(vocab_size), std::to_string(id));
    throw Error(ErrorKind::Data, diagnostic);
  }
  text::Encoding encoding;
  encoding.ids = sample.input_ids;
  encoding.truncated = options.max_length > 0 && encoding.ids.size() > options.max_length;
  if (encoding.truncated && options.keep_end)
    encoding.ids.erase(encoding.ids.begin(), encoding.ids.end() - static_cast<ptrdiff_t>(options.max_length));
  if (encoding.truncated) encoding.ids.resize(options.max_length);
  encoding.type_ids.assign(encoding.ids.size(), 0);
  return encoding;
}

}  // namespace lathe::data
