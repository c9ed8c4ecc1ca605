#include "lathe/train/save.h"

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <set>
#include <utility>
#include <variant>

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/io/tensors.h"
#include "lathe/models/load.h"
#include "lathe/models/quantize.h"
#include "lathe/nn/moe_experts.h"

namespace lathe::train {
namespace {

Json timm_config(const Classifier& classifier) {
  return arch::timm_config(std::get<arch::MixerArch>(classifier.arch), *classifier.image, classifier.labels);
}

// config.json of the base model, saying that this is a dense classifier with these labels.
Json classifier_config(const Classifier& classifier) {
  if (classifier.image) return timm_config(classifier);
  Json config = classifier.config;
  config["architectures"] = {"BertForSequenceClassification"};
  config.erase("torch_dtype");
  config.erase("quantization_config");
  config["dtype"] = classifier.precision.storage == at::kBFloat16 ? "bfloat16" : "float32";
  Json id2label = Json::object(), label2id = Json::object();
  for (size_t i = 0; i < classifier.labels.size(); ++i) {
    id2label[std::to_string(i)] = classifier.labels[i];
    label2id[classifier.labels[i]] = i;
  }
  if (const auto& experts = arch::mlp_experts(classifier.arch)) config["moe"] = arch::to_json(*experts);
  config["num_labels"] = classifier.labels.size();
  config["id2label"] = std::move(id2label);
  config["label2id"] = std::move(label2id);
  return config;
}

void write_rest(const Classifier& classifier, const Json& config, const std::string& directory) {
  write_file_atomically(directory + "/config.json", config.dump(2) + "\n");
  if (!classifier.model_path.empty()) formats::copy_companions(classifier.model_path, directory);
}

// Of the tensors in a model's file: the weights of the slots and of the experts, merged when they are written, but for
// those in `done`; and the parameters outside of them.
std::vector<io::LazyTensor> dense_tensors(const Classifier& classifier, std::set<std::string> done) {
  const at::ScalarType storage = classifier.precision.storage;
  std::vector<io::LazyTensor> tensors;
  for (const nn::NamedSlot& named : nn::named_slots(*classifier.model)) {
    const std::string name = named.path + ".weight";
    if (!done.insert(name).second) continue;
    const auto layer = named.slot->module();
    tensors.push_back({name, storage, {layer->out_features(), layer->in_features()}, [layer, storage] {
                         return layer->dense_weight().to(storage);
                       }});
  }
  for (const auto& [path, bank] : nn::expert_banks(*classifier.model)) {
    for (const std::string& projection : bank->projections()) {
      const std::string name = path + "." + projection;
      done.insert(name);
      tensors.push_back({name, storage, bank->shape_of(projection),
                         [bank = bank, projection, storage] { return bank->dense_weight(projection).to(storage); }});
    }
  }
  for (const auto& item : classifier.model->named_parameters()) {
    const std::string name = models::checkpoint_name(item.key());
    if (item.key().find(".lora_") != std::string::npos || done.contains(name)) continue;
    const bool rounded = item.value().dim() >= 2 && !models::stays_float(name);
    tensors.push_back(io::LazyTensor::of(name, rounded ? item.value().to(storage) : item.value()));
  }
  for (const auto& [name, bias] : models::selection_biases(*classifier.model))
    tensors.push_back(io::LazyTensor::of(name, bias));
  return tensors;
}

// The four-bit layer in a slot, beneath an adapter or not, or null.
const nn::NF4LinearImpl* four_bit_layer(const nn::LinearBase& linear) {
  if (const auto* lora = dynamic_cast<const nn::LoRALinearImpl*>(&linear)) return four_bit_layer(*lora->base_layer);
  return dynamic_cast<const nn::NF4LinearImpl*>(&linear);
}

struct Loss {
  double lost = 0, update = 0;  // sums of squares

  void add(const Tensor& before, const Tensor& merged, const Tensor& after) {
    lost += (after - merged).to(at::kDouble).square().sum().item<double>();
    update += (merged - before).to(at::kDouble).square().sum().item<double>();
  }
};

}  // namespace

void save_adapter(const Classifier& classifier, const std::string& directory) {
  adapters::save(directory, *classifier.model, *classifier.adapter, classifier.labels);
  if (!classifier.image) return;
  const Json preprocessing = {{"pretrained_cfg", timm_config(classifier)["pretrained_cfg"]}};
  write_file_atomically(directory + "/" + kPreprocessingFile, preprocessing.dump(2) + "\n");
}

void save_model(const Classifier& classifier, const std::string& directory) {
  const at::NoGradGuard no_grad;
  io::write_safetensors(directory + "/model.safetensors", dense_tensors(classifier, {}));
  write_rest(classifier, classifier_config(classifier), directory);
}

double save_requantised(const Classifier& classifier, const std::string& directory) {
  const at::NoGradGuard no_grad;
  io::NamedTensors packed;
  std::set<std::string> done;
  std::vector<std::string> dense;
  formats::FourBitState state;
  Loss loss;
  for (const nn::NamedSlot& named : nn::named_slots(*classifier.model)) {
    const nn::LinearBase& linear = **named.slot;
    const nn::NF4LinearImpl* base = four_bit_layer(linear);
    if (base == nullptr) {
      dense.push_back(named.path);
      continue;
    }
    const std::string name = named.path + ".weight";
    nn::NF4Linear layer(base->in_features(), base->out_features(), /*bias=*/false, base->options);
    layer->set_packed(base->stored());
    if (&linear != base) {
      const Tensor before = base->dense_weight(), merged = linear.dense_weight();
      layer->quantize(merged.to(base->stored().dtype), name);
      loss.add(before, merged, layer->dense_weight());
    }
    state = models::four_bit_state(*layer);
    done.insert(name);
    for (auto& part : models::four_bit_tensors(name, *layer)) packed.push_back(std::move(part));
  }
  if (packed.empty())
    throw Error(ErrorKind::Config, Diagnostic{"--requantize", 0, 0, "", "needs a model in four bits", ""});
  std::vector<io::LazyTensor> tensors = dense_tensors(classifier, done);
  for (const auto& [name, tensor] : packed) tensors.push_back(io::LazyTensor::of(name, tensor));
  io::write_safetensors(directory + "/model.safetensors", tensors);
  Json config = classifier_config(classifier);
  config["quantization_config"] = formats::quantization_config(state, dense);
  write_rest(classifier, config, directory);
  return loss.update == 0 ? 0 : std::sqrt(loss.lost / loss.update);
}

}  // namespace lathe::train
