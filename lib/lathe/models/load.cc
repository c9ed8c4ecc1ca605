#include "lathe/models/load.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <map>
#include <numbers>
#include <set>

#include "lathe/base/error.h"
#include "lathe/base/random.h"
#include "lathe/io/tensors.h"
#include "lathe/models/quantize.h"
#include "lathe/nn/modules.h"
#include "lathe/nn/moe_experts.h"
#include "lathe/nn/moe_router.h"
#include "lathe/nn/nf4.h"

namespace lathe::models {
namespace {

bool is_adapter_parameter(const std::string& name) {
  return name.find(".lora_A.") != std::string::npos || name.find(".lora_B.") != std::string::npos;
}

// Two standard normals from counters (Box-Muller); this is the first.
double random_normal(uint64_t key, uint64_t index) {
  const double u = 1 - random_uniform(key, 2 * index), v = random_uniform(key, 2 * index + 1);
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
}

// Cut at two: drawn again, with another key, until it lies inside.
double random_cut_normal(uint64_t key, uint64_t index) {
  for (uint64_t attempt = 0;; ++attempt) {
    const double value = random_normal(attempt == 0 ? key : make_key(key, attempt), index);
    if (std::abs(value) <= 2) return value;
  }
}

double drawn(const arch::Initial& initial, uint64_t key, uint64_t index) {
  switch (initial.kind) {
    case arch::Initial::Kind::Constant:
      return initial.value;
    case arch::Initial::Kind::Normal:
      return initial.value * random_normal(key, index);
    case arch::Initial::Kind::TruncatedNormal:
      return initial.value * random_cut_normal(key, index);
    case arch::Initial::Kind::Uniform:
      return initial.value * (2 * random_uniform(key, index) - 1);
  }
  return 0;
}

// The elements from `first` on of the parameter of that name.
at::Tensor draw(at::IntArrayRef shape, const arch::Initial& initial, uint64_t seed, const std::string& name,
                int64_t first = 0) {
  const at::Tensor values = at::empty(shape, at::kFloat);
  const uint64_t key = make_key(seed, name_key(name));
  auto* data = values.data_ptr<float>();
  at::parallel_for(0, values.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      data[i] = static_cast<float>(drawn(initial, key, static_cast<uint64_t>(first + i)));
  });
  return values;
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

using Items = std::map<std::string, const arch::CheckpointMatch::Item*>;

const arch::CheckpointMatch::Item& item_of(const Items& items, const std::string& name) {
  const auto found = items.find(name);
  if (found == items.end())
    throw Error(ErrorKind::Internal,
                Diagnostic{"", 0, 0, name, "is not in the list of the architecture's parameters", ""});
  return *found->second;
}

// A new weight, drawn and quantised.
void quantize_drawn(nn::NF4LinearImpl& layer, const arch::ParameterSpec& parameter, uint64_t seed) {
  layer.quantize(draw(parameter.shape, parameter.initial, seed, parameter.name), parameter.name);
}

// The experts that are in four bits, one by one; returns their layers.
std::set<const torch::nn::Module*> quantize_experts(torch::nn::Module& model, const Items& items,
                                                    io::ModelTensors& files, nn::Precision precision, uint64_t seed) {
  std::set<const torch::nn::Module*> done;
  for (const auto& [path, bank] : nn::expert_banks(model)) {
    for (const std::string& projection : bank->projections()) {
      int64_t expert = 0;
      for (nn::NF4Linear layer : bank->four_bit_layers(projection)) {
        const arch::CheckpointMatch::Item& item = item_of(items, path + "." + projection);
        layer->options.compute(precision.compute);
        done.insert(layer.get());
        if (item.tensor != nullptr) {
          quantize_from_file(*layer, *item.tensor, files, expert++);
          continue;
        }
        const std::string& name = item.parameter.name;
        layer->quantize(draw({layer->out_features(), layer->in_features()}, item.parameter.initial, seed, name,
                             expert++ * layer->out_features() * layer->in_features()),
                        name);
      }
    }
  }
  return done;
}

void quantize_weights(torch::nn::Module& model, const Items& items, io::ModelTensors& files, nn::Precision precision,
                      uint64_t seed) {
  const std::set<const torch::nn::Module*> experts = quantize_experts(model, items, files, precision, seed);
  for (const auto& entry : model.named_modules("", /*include_self=*/false)) {
    auto* layer = dynamic_cast<nn::NF4LinearImpl*>(entry.value().get());
    if (layer == nullptr || experts.contains(layer)) continue;
    const std::string name = checkpoint_name(entry.key() + ".weight");
    const arch::CheckpointMatch::Item& item = item_of(items, name);
    layer->options.compute(precision.compute);
    if (item.four_bit != nullptr) {
      layer->set_packed(read_four_bit(*item.four_bit, files));
      continue;
    }
    const formats::TensorLocation* location = item.tensor;
    if (location == nullptr) {
      quantize_drawn(*layer, item.parameter, seed);
      continue;
    }
    quantize_from_file(*layer, *location, files);
  }
}

// The biases that loss-free balancing moves.
void load_selection_biases(torch::nn::Module& model, const Items& items, io::ModelTensors& files) {
  for (auto& [name, bias] : selection_biases(model)) {
    const formats::TensorLocation* location = item_of(items, name).tensor;
    if (location != nullptr) bias.copy_(files.tensor(*location));
  }
}

}  // namespace

bool stays_float(const std::string& name) {
  return name.ends_with(".gate.weight") || name.ends_with(".gate.noise_weight") || name.ends_with("_proj_bias");
}

io::NamedTensors selection_biases(const torch::nn::Module& model) {
  io::NamedTensors biases;
  for (const auto& entry : model.named_modules("", /*include_self=*/false)) {
    const auto* router = dynamic_cast<const nn::RouterBase*>(entry.value().get());
    if (router != nullptr && router->selection_bias().defined())
      biases.emplace_back(entry.key() + ".e_score_correction_bias", router->selection_bias());
  }
  return biases;
}

std::string checkpoint_name(std::string name) {
  constexpr std::string_view kLevel = ".base_layer";
  for (size_t at = name.find(kLevel); at != std::string::npos; at = name.find(kLevel)) name.erase(at, kLevel.size());
  return name;
}

void initialise(at::Tensor parameter, const arch::Initial& initial, uint64_t seed, const std::string& name) {
  parameter.set_data(draw(parameter.sizes(), initial, seed, name));
}

void load_weights(torch::nn::Module& model, const arch::CheckpointMatch& match, uint64_t seed, nn::Precision precision,
                  bool round_trained) {
  const at::NoGradGuard no_grad;
  Items items;
  for (const auto& item : match.items) items[item.parameter.name] = &item;
  io::ModelTensors files;
  for (auto& entry : model.named_parameters()) {
    at::Tensor& parameter = entry.value();
    if (is_adapter_parameter(entry.key())) continue;
    const std::string name = checkpoint_name(entry.key());
    const arch::CheckpointMatch::Item& item = item_of(items, name);
    // Matrices and experts; a stem's convolution stays as it computes.
    const bool matrix = parameter.dim() == 2 || parameter.dim() == 3;
    const bool frozen_matrix = matrix && !parameter.requires_grad() && !stays_float(name);
    if (item.tensor == nullptr) {
      initialise(parameter, item.parameter.initial, seed, name);
      if (frozen_matrix) parameter.set_data(parameter.to(precision.storage));
      continue;
    }
    const at::Tensor stored =
        item.four_bit != nullptr ? stored_layer(*item.four_bit, files)->dense_weight() : files.tensor(*item.tensor);
    const at::Tensor tensor = stored.to(frozen_matrix ? precision.storage : at::kFloat);
    parameter.set_data(parameter.requires_grad() && item.four_bit == nullptr ? tensor.clone() : tensor);
  }
  load_selection_biases(model, items, files);
  quantize_weights(model, items, files, precision, seed);
  set_precision(model, precision, round_trained);
}

}  // namespace lathe::models
