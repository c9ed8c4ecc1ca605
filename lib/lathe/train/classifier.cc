#include "lathe/train/classifier.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>
#include <variant>

#include "lathe/arch/checkpoint.h"
#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/models/load.h"
#include "lathe/models/quantize.h"
#include "lathe/recipe/precision.h"

namespace lathe::train {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> numbered_labels(size_t count) {
  std::vector<std::string> labels;
  for (size_t i = 0; i < count; ++i) labels.push_back("LABEL_" + std::to_string(i));
  return labels;
}

// The number of labels of a head of this shape, or 0.
int64_t head_rows(const std::vector<int64_t>& shape) { return shape.size() == 2 ? shape[0] : 0; }

arch::ImageInput read_preprocessing(const std::string& file, const arch::Arch& arch) {
  const Json json = read_json_file(file, 16 << 20);
  return arch::read_image_input(JsonObject(json, file), std::get<arch::MixerArch>(arch));
}

int64_t adapter_head_rows(const std::string& adapter, const std::string& head) {
  for (const formats::TensorInfo& info :
       formats::read_safetensors_header(formats::adapter_weights_path(adapter)).tensors) {
    if (info.name == "base_model.model." + head + ".weight") return head_rows(info.shape);
  }
  return 0;
}

at::ScalarType scalar_type_of(recipe::StorageType type) {
  return type == recipe::StorageType::BFloat16 ? at::kBFloat16 : at::kFloat;
}

// Four-bit storage as the checkpoint has it or as the recipe says, but for what trains whole.
void quantize_slots(torch::nn::Module& model, const arch::CheckpointMatch& match, const recipe::Quant& quant,
                    const std::vector<std::string>& trained) {
  if (arch::has_four_bit(match)) return models::quantize_stored_slots(model, match, trained);
  if (quant.type == recipe::QuantType::None) return;
  std::vector<std::string> skip = quant.skip_modules;
  skip.insert(skip.end(), trained.begin(), trained.end());
  models::quantize_slots(model,
                         nn::NF4LinearOptions()
                             .type(quant.type == recipe::QuantType::Nf4 ? quant::QuantType::NF4 : quant::QuantType::FP4)
                             .blocksize(quant.blocksize)
                             .double_quant(quant.double_quant),
                         skip);
}

nn::Precision precision_of(recipe::StorageType dtype, recipe::StorageType compute, const arch::CheckpointMatch& match) {
  const recipe::Precision precision = recipe::resolve_precision(dtype, compute, match);
  return {scalar_type_of(precision.storage), scalar_type_of(precision.compute)};
}

}  // namespace

std::shared_ptr<nn::SlottedModule> build_skeleton(const arch::Arch& arch, int64_t num_labels) {
  if (arch::sees_images(arch)) return models::build_image_classifier(arch, num_labels);
  return models::build_text_classifier(arch, num_labels);
}

Prepared prepare_model(torch::nn::Module& model, const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                       int64_t num_labels) {
  Prepared prepared;
  const auto seed = static_cast<uint64_t>(recipe.training.seed);
  const auto match = resolved.match(num_labels);
  if (resolved.adapter) {
    quantize_slots(model, match, recipe.quant, resolved.adapter->modules_to_save);
    adapters::attach(model, resolved.targets, *resolved.adapter);
    adapters::initialise(model, seed);
    prepared.saved_modules = adapters::train_modules(model, resolved.adapter->modules_to_save);
  } else {
    for (Tensor& parameter : model.parameters()) parameter.requires_grad_(true);
  }
  prepared.precision = precision_of(recipe.model.dtype, recipe.model.compute, match);
  models::load_weights(model, match, seed, prepared.precision, /*round_trained=*/!resolved.adapter);
  if (recipe.adapter.from) adapters::load(recipe.adapter.from->resolved, model, prepared.saved_modules);
  return prepared;
}

Classifier build_classifier(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                            const std::vector<std::string>& labels) {
  Classifier classifier;
  classifier.arch = resolved.config.arch;
  classifier.model_path = resolved.directory.path();
  classifier.config = resolved.config.json;
  classifier.adapter = resolved.adapter;
  classifier.labels = labels;
  classifier.image = resolved.config.image;
  const auto num_labels = static_cast<int64_t>(labels.size());
  classifier.model = build_skeleton(resolved.config.arch, num_labels);
  Prepared prepared = prepare_model(*classifier.model, recipe, resolved, num_labels);
  classifier.precision = prepared.precision;
  classifier.saved_modules = std::move(prepared.saved_modules);
  return classifier;
}

Classifier load_classifier(const std::string& model_path, const std::string& adapter, recipe::StorageType dtype,
                           recipe::StorageType compute, const recipe::Quant& quant) {
  const auto directory = formats::ModelDirectory::open(model_path);
  const arch::ModelConfig config = arch::read_model_config(directory.config_path());
  Classifier classifier;
  classifier.arch = config.arch;
  classifier.model_path = directory.path();
  classifier.config = config.json;
  classifier.image = config.image;
  const std::string head_name = arch::head_module(config.arch);
  int64_t num_labels = head_rows(directory.shape_of(head_name + ".weight"));
  classifier.labels = config.labels;
  std::optional<std::vector<std::string>> adapter_labels;
  if (!adapter.empty()) {
    classifier.adapter = formats::read_adapter_config(adapter);
    if (const int64_t rows = adapter_head_rows(adapter, head_name); rows > 0) num_labels = rows;
    adapter_labels = formats::read_labels(adapter);
    if (adapter_labels) classifier.labels = *adapter_labels;
    if (classifier.image && fs::exists(adapter + "/" + kPreprocessingFile))
      classifier.image = read_preprocessing(adapter + "/" + kPreprocessingFile, config.arch);
  }
  if (num_labels == 0) {
    throw data_error(adapter.empty() ? directory.path() : adapter,
                     "has no classification head (" + head_name + ".weight)",
                     adapter.empty() ? "give the adapter that was trained with it" : "train one with lathe train");
  }
  if (adapter_labels && static_cast<int64_t>(adapter_labels->size()) != num_labels) {
    throw data_error(adapter + "/labels.json",
                     Diagnostic::expected(std::to_string(num_labels) + " labels, as the head has",
                                          std::to_string(adapter_labels->size())));
  }
  if (static_cast<int64_t>(classifier.labels.size()) != num_labels)
    classifier.labels = numbered_labels(static_cast<size_t>(num_labels));
  classifier.model = build_skeleton(config.arch, num_labels);
  const auto match = arch::match_checkpoint(directory, config.arch, num_labels);
  std::vector<std::string> saved = arch::head_modules(config.arch);
  if (classifier.adapter)
    saved.insert(saved.end(), classifier.adapter->modules_to_save.begin(), classifier.adapter->modules_to_save.end());
  quantize_slots(*classifier.model, match, quant, saved);
  if (classifier.adapter) {
    const auto targets =
        arch::classifier_targets(config.arch, num_labels, *classifier.adapter, arch::origin_of_adapter(adapter));
    adapters::attach(*classifier.model, targets, *classifier.adapter);
    classifier.saved_modules = adapters::train_modules(*classifier.model, saved);
  }
  classifier.precision = precision_of(dtype, compute, match);
  models::load_weights(*classifier.model, match, 0, classifier.precision, /*round_trained=*/!classifier.adapter);
  if (classifier.adapter) adapters::load(adapter, *classifier.model, classifier.saved_modules);
  for (Tensor& parameter : classifier.model->parameters()) parameter.requires_grad_(false);
  classifier.model->eval();
  return classifier;
}

models::TokenBatch make_batch(const std::vector<text::Encoding>& encodings) {
  std::vector<std::vector<int64_t>> ids, type_ids;
  for (const text::Encoding& encoding : encodings) {
    ids.push_back(encoding.ids);
    type_ids.push_back(encoding.type_ids);
  }
  return models::pack_tokens(ids, type_ids);
}

Tensor predict_logits(const Classifier& classifier, const std::vector<text::Encoding>& encodings) {
  const at::NoGradGuard no_grad;
  return classifier.texts().forward(make_batch(encodings), {}).to(at::kFloat);
}

Tensor make_pixels(const std::vector<image::Picture>& pictures, const image::Preprocess& preprocess) {
  const auto count = static_cast<int64_t>(pictures.size());
  const int64_t channels = preprocess.channels, height = preprocess.height, width = preprocess.width;
  const Tensor pixels = at::empty({count, channels, height, width});
  float* out = pixels.data_ptr<float>();
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      image::normalise(pictures[static_cast<size_t>(i)], preprocess, out + i * channels * height * width);
  });
  return pixels;
}

Tensor predict_logits(const Classifier& classifier, const Tensor& pixels) {
  const at::NoGradGuard no_grad;
  return classifier.images().forward(pixels, {}).to(at::kFloat);
}

}  // namespace lathe::train
