#include "lathe/adapters/lora.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/random.h"
#include "lathe/base/text.h"
#include "lathe/io/tensors.h"
#include "lathe/nn/moe_experts.h"

namespace lathe::adapters {
namespace {

constexpr const char* kPeftPrefix = "base_model.model.";

template <typename Action>
void for_each_layer(const torch::nn::Module& model, Action action) {
  for (const auto& [path, layer] : lora_layers(model)) action(*layer);
  for (const auto& [path, bank] : nn::expert_banks(model)) {
    if (!bank->updates().empty()) action(*bank);
  }
}

// Gives the banks of experts among the targets their updates.
class BankAdapter {
 public:
  explicit BankAdapter(const torch::nn::Module& model) {
    for (const auto& [path, bank] : nn::expert_banks(model)) banks_.emplace(path, bank);
  }

  // False when the path is no projection of a bank.
  bool add(const std::string& path, const nn::LoRALinearOptions& options) {
    const auto [above, projection] = split(path);
    const nn::ExpertLoRAOptions lora{projection, options.rank(), options.scaling(), options.dropout()};
    if (const auto whole = banks_.find(above); whole != banks_.end()) {
      of_all_[whole->second.get()].push_back(lora);
      return true;
    }
    const auto [bank, expert] = split(above);
    const auto found = banks_.find(bank);
    int64_t index = -1;
    std::from_chars(expert.data(), expert.data() + expert.size(), index);
    if (found == banks_.end() || std::to_string(index) != expert) return false;
    found->second->adapt_expert(index, lora);
    return true;
  }

  // All tensors of a bank at once.
  void finish() {
    for (const auto& [bank, loras] : of_all_) bank->adapt_parameters(loras);
  }

 private:
  static std::pair<std::string, std::string> split(const std::string& path) {
    const size_t dot = path.rfind('.');
    return dot == std::string::npos ? std::pair(std::string(), path)
                                    : std::pair(path.substr(0, dot), path.substr(dot + 1));
  }

  std::map<std::string, std::shared_ptr<nn::ExpertBankImpl>> banks_;
  std::map<nn::ExpertBankImpl*, std::vector<nn::ExpertLoRAOptions>> of_all_;
};

bool is_adapter_parameter(const std::string& name) {
  return name.find(".lora_A.") != std::string::npos || name.find(".lora_B.") != std::string::npos;
}

bool is_inside(const std::string& parameter, const std::vector<std::string>& modules) {
  return std::any_of(modules.begin(), modules.end(),
                     [&](const std::string& path) { return parameter.starts_with(path + "."); });
}

// Of the paths of modules those that one of the names stands for.
std::vector<std::string> paths_named(const std::vector<std::string>& paths, const std::vector<std::string>& names) {
  std::vector<std::string> found;
  for (const std::string& path : paths) {
    if (std::any_of(names.begin(), names.end(),
                    [&](const auto& name) { return arch::matches_module_name(path, name); }))
      found.push_back(path);
  }
  return found;
}

}  // namespace

void attach(torch::nn::Module& model, const std::vector<arch::Target>& targets, const formats::AdapterConfig& config) {
  std::map<std::string, nn::LinearSlot*> slots;
  for (const nn::NamedSlot& named : nn::named_slots(model)) slots[named.path] = named.slot;
  BankAdapter banks(model);
  for (const arch::Target& target : targets) {
    const auto options = nn::LoRALinearOptions(target.rank, target.alpha)
                             .rank_stabilised(config.use_rslora)
                             .dropout(config.lora_dropout);
    if (const auto found = slots.find(target.linear.path); found != slots.end()) {
      found->second->replace(nn::LoRALinear(found->second->module(), options).ptr());
    } else {
      TORCH_CHECK_VALUE(banks.add(target.linear.path, options),
                        "attach: expected the path of a linear slot or of a projection of experts, got ",
                        target.linear.path);
    }
  }
  banks.finish();
}

std::vector<std::pair<std::string, nn::LoRALinearImpl*>> lora_layers(const torch::nn::Module& model) {
  std::vector<std::pair<std::string, nn::LoRALinearImpl*>> layers;
  for (const nn::NamedSlot& named : nn::named_slots(model)) {
    if (auto* layer = dynamic_cast<nn::LoRALinearImpl*>(named.slot->module().get()))
      layers.emplace_back(named.path, layer);
  }
  return layers;
}

void initialise(torch::nn::Module& model, uint64_t seed) {
  const at::NoGradGuard no_grad;
  for (const auto& [path, layer] : lora_layers(model)) {
    const Tensor A = at::empty(layer->lora_A->weight.sizes(), at::kFloat);
    const double bound = 1 / std::sqrt(static_cast<double>(layer->in_features()));
    const uint64_t key = make_key(seed, name_key(path + ".lora_A.weight"));
    auto* values = A.data_ptr<float>();
    for (int64_t i = 0; i < A.numel(); ++i)
      values[i] = static_cast<float>(bound * (2 * random_uniform(key, static_cast<uint64_t>(i)) - 1));
    layer->lora_A->weight.set_data(A);
    layer->lora_B->weight.set_data(at::zeros(layer->lora_B->weight.sizes()));
  }
  for (const auto& [path, bank] : nn::expert_banks(model)) bank->initialise_updates(seed, path + ".");
}

std::vector<std::string> train_modules(torch::nn::Module& model, const std::vector<std::string>& names) {
  std::vector<std::string> paths;
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    const bool named = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return arch::matches_module_name(item.key(), name);
    });
    if (!named) continue;
    paths.push_back(item.key());
    for (Tensor& parameter : item.value()->parameters()) parameter.requires_grad_(true);
  }
  return paths;
}

void set_enabled(torch::nn::Module& model, bool enabled) {
  for_each_layer(model, [enabled](auto& layer) { layer.set_enabled(enabled); });
}

void merge(torch::nn::Module& model) {
  for_each_layer(model, [](auto& layer) { layer.merge(); });
}

void unmerge(torch::nn::Module& model) {
  for_each_layer(model, [](auto& layer) { layer.unmerge(); });
}

std::vector<std::pair<std::string, double>> update_norms(const torch::nn::Module& model) {
  std::vector<std::pair<std::string, double>> norms;
  for (const auto& [path, layer] : lora_layers(model)) norms.emplace_back(path, layer->update().norm().item<double>());
  for (const auto& [path, bank] : nn::expert_banks(model)) {
    std::map<std::string, double> squares;
    for (const auto& update : bank->updates()) {
      for (int64_t e = 0; e < bank->num_experts(); ++e) {
        if (update.expert < 0 || update.expert == e)
          squares[update.options.projection] += update.of_expert(e, bank->num_experts()).square().sum().item<double>();
      }
    }
    for (const auto& [projection, square] : squares) norms.emplace_back(path + "." + projection, std::sqrt(square));
  }
  return norms;
}

NamedTensors trainable_parameters(const torch::nn::Module& model) {
  NamedTensors parameters;
  for (const auto& item : model.named_parameters()) {
    if (item.value().requires_grad()) parameters.emplace_back(item.key(), item.value());
  }
  return parameters;
}

void save(const std::string& directory, const torch::nn::Module& model, const formats::AdapterConfig& config,
          const std::vector<std::string>& labels) {
  NamedTensors tensors;
  for (const auto& [name, parameter] : trainable_parameters(model)) tensors.emplace_back(kPeftPrefix + name, parameter);
  io::write_safetensors(directory + "/adapter_model.safetensors", tensors);
  write_file_atomically(directory + "/adapter_config.json", formats::adapter_config_text(config));
  if (!labels.empty()) write_file_atomically(directory + "/labels.json", formats::labels_text(labels));
}

void load(const std::string& directory, torch::nn::Module& model, const std::vector<std::string>& saved_modules) {
  const at::NoGradGuard no_grad;
  const std::string path = formats::adapter_weights_path(directory);
  const io::TensorFile file(path);
  std::map<std::string, Tensor> tensors;
  for (auto& [name, tensor] : file.tensors()) tensors[name] = tensor;
  const auto promised = paths_named(saved_modules, formats::read_adapter_config(directory).modules_to_save);
  std::vector<Diagnostic> mistakes;
  for (auto& item : model.named_parameters()) {
    const bool required = is_adapter_parameter(item.key()) || is_inside(item.key(), promised);
    if (!required && !is_inside(item.key(), saved_modules)) continue;
    const auto found = tensors.find(kPeftPrefix + item.key());
    if (found == tensors.end()) {
      if (required) mistakes.push_back({path, 0, 0, kPeftPrefix + item.key(), "is missing", ""});
      continue;
    }
    const Tensor tensor = found->second;
    tensors.erase(found);
    if (tensor.sizes() != item.value().sizes() || !tensor.is_floating_point()) {
      mistakes.push_back(
          {path, 0, 0, kPeftPrefix + item.key(), "has another shape or kind than the model's parameter", ""});
      continue;
    }
    item.value().set_data(tensor.to(at::kFloat).clone());
  }
  for (const auto& [name, tensor] : tensors)
    mistakes.push_back(
        {path, 0, 0, printable(name), "belongs to no adapted module of this model", "nothing is silently ignored"});
  if (!mistakes.empty()) throw Error(ErrorKind::Data, std::move(mistakes));
}

}  // namespace lathe::adapters
