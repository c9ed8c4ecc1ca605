#include "lathe/models/load.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <map>
#include <numbers>

#include "lathe/base/error.h"
#include "lathe/base/random.h"
#include "lathe/io/tensors.h"
#include "lathe/nn/modules.h"
#include "lathe/nn/nf4.h"

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

// Gives back the pages of a mapped tensor that has been read for the last time.
void drop_pages(const at::Tensor& mapped) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE)),
             begin = reinterpret_cast<uintptr_t>(mapped.data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + mapped.nbytes()) / page * page;
  if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

using Items = std::map<std::string, const arch::CheckpointMatch::Item*>;

const arch::CheckpointMatch::Item& item_of(const Items& items, const std::string& name) {
  const auto found = items.find(name);
  if (found == items.end())
    throw Error(ErrorKind::Internal,
                Diagnostic{"", 0, 0, name, "is not in the list of the architecture's parameters", ""});
  return *found->second;
}

void quantize_weights(torch::nn::Module& model, const Items& items, io::ModelTensors& files, nn::Precision precision) {
  for (const auto& entry : model.named_modules("", /*include_self=*/false)) {
    auto* layer = dynamic_cast<nn::NF4LinearImpl*>(entry.value().get());
    if (layer == nullptr) continue;
    const std::string name = checkpoint_name(entry.key() + ".weight");
    const formats::TensorLocation* location = item_of(items, name).tensor;
    if (location == nullptr)
      throw Error(ErrorKind::Internal, Diagnostic{"", 0, 0, name, "is new: it cannot be quantised", ""});
    const at::Tensor stored = files.tensor(*location);
    const bool narrow = stored.scalar_type() == at::kBFloat16 || stored.scalar_type() == at::kHalf;
    layer->options.compute(precision.compute);
    try {
      layer->quantize(narrow ? stored : stored.to(at::kFloat), location->info.name);
    } catch (const c10::ValueError& error) {
      throw data_error(location->file, error.what_without_backtrace());
    }
    drop_pages(stored);
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
  Items items;
  for (const auto& item : match.items) items[item.parameter.name] = &item;
  io::ModelTensors files;
  for (auto& entry : model.named_parameters()) {
    at::Tensor& parameter = entry.value();
    if (is_adapter_parameter(entry.key())) continue;
    const std::string name = checkpoint_name(entry.key());
    const arch::CheckpointMatch::Item& item = item_of(items, name);
    if (item.tensor == nullptr) {
      initialise_head(parameter, name, seed);
      continue;
    }
    const bool frozen_matrix = parameter.dim() >= 2 && !parameter.requires_grad();
    const at::Tensor stored = files.tensor(*item.tensor);
    const at::Tensor tensor = stored.to(frozen_matrix ? precision.storage : at::kFloat);
    parameter.set_data(parameter.requires_grad() ? tensor.clone() : tensor);
  }
  quantize_weights(model, items, files, precision);
  set_precision(model, precision, round_trained);
}

}  // namespace lathe::models
