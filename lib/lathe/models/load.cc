#include "lathe/models/load.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <map>
#include <numbers>

#include "lathe/base/error.h"
#include "lathe/base/random.h"
#include "lathe/io/tensors.h"
#include "lathe/nn/modules.h"

namespace lathe::models {
namespace {

constexpr double kHeadStd = 0.02;

bool is_adapter_parameter(const std::string& name) {
  return name.find(".lora_A.") != std::string::npos || name.find(".lora_B.") != std::string::npos;
}

void initialise_head(at::Tensor parameter, const std::string& name, uint64_t seed) {
  if (name.ends_with(".bias")) {
    parameter.set_data(at::zeros(parameter.sizes()));
  } else {
    fill_normal(parameter, kHeadStd, seed, name);
  }
}

void set_precision(torch::nn::Module& model, nn::Precision precision, bool round_trained) {
  for (const auto& module : model.modules()) {
    if (auto* linear = dynamic_cast<nn::LinearImpl*>(module.get())) {
      if (round_trained || !linear->weight.requires_grad()) linear->set_precision(precision);
    } else if (auto* embedding = dynamic_cast<nn::EmbeddingImpl*>(module.get())) {
      if (round_trained || !embedding->weight.requires_grad()) embedding->set_storage(precision.storage);
    }
  }
}

}  // namespace

std::string checkpoint_name(std::string name) {
  constexpr std::string_view kLevel = ".base_layer";
  for (size_t at = name.find(kLevel); at != std::string::npos; at = name.find(kLevel)) name.erase(at, kLevel.size());
  return name;
}

void fill_normal(at::Tensor parameter, double std, uint64_t seed, const std::string& name) {
  const at::Tensor values = at::empty(parameter.sizes(), at::kFloat);
  const uint64_t key = make_key(seed, name_key(name));
  auto* data = values.data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i) {  // Box-Muller
    const double u = 1 - random_uniform(key, 2 * static_cast<uint64_t>(i)),
                 v = random_uniform(key, 2 * static_cast<uint64_t>(i) + 1);
    data[i] = static_cast<float>(std * std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v));
  }
  parameter.set_data(values);
}

at::ScalarType stored_type(const arch::CheckpointMatch& match) {
  const formats::TensorInfo* largest = nullptr;
  for (const auto& item : match.items) {
    if (item.tensor != nullptr && (largest == nullptr || item.tensor->info.num_bytes() > largest->num_bytes()))
      largest = &item.tensor->info;
  }
  const bool half =
      largest != nullptr && (largest->dtype == formats::Dtype::BF16 || largest->dtype == formats::Dtype::F16);
  return half ? at::kBFloat16 : at::kFloat;
}

void load_weights(torch::nn::Module& model, const arch::CheckpointMatch& match, uint64_t seed, nn::Precision precision,
                  bool round_trained) {
  const at::NoGradGuard no_grad;
  std::map<std::string, const arch::CheckpointMatch::Item*> items;
  for (const auto& item : match.items) items[item.parameter.name] = &item;
  io::ModelTensors files;
  for (auto& entry : model.named_parameters()) {
    at::Tensor& parameter = entry.value();
    if (is_adapter_parameter(entry.key())) continue;
    const std::string name = checkpoint_name(entry.key());
    const auto found = items.find(name);
    if (found == items.end())
      throw Error(ErrorKind::Internal,
                  Diagnostic{"", 0, 0, name, "is not in the list of the architecture's parameters", ""});
    if (found->second->tensor == nullptr) {
      initialise_head(parameter, name, seed);
      continue;
    }
    const bool frozen_matrix = parameter.dim() >= 2 && !parameter.requires_grad();
    const at::Tensor stored = files.tensor(*found->second->tensor);
    const at::Tensor tensor = stored.to(frozen_matrix ? precision.storage : at::kFloat);
    parameter.set_data(parameter.requires_grad() ? tensor.clone() : tensor);
  }
  set_precision(model, precision, round_trained);
}

}  // namespace lathe::models
