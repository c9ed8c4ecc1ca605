#pragma once

#include <string>
#include <utility>
#include <vector>

#include "lathe/arch/targets.h"
#include "lathe/formats/adapter_directory.h"
#include "lathe/nn/lora.h"

namespace lathe::adapters {

using at::Tensor;
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// Puts a LoRALinear around the layer in each target's slot, and an update beside each matrix of a bank of experts: a
/// target BANK.3.down_proj is that of one expert, BANK.down_proj the tensor of all, as in PEFT's target_parameters.
/// Works on any module tree with slots and banks, hollow or filled.
/// Throws c10::ValueError when a target's path is no slot of `model` and no projection of a bank.
void attach(torch::nn::Module& model, const std::vector<arch::Target>& targets, const formats::AdapterConfig& config);

/// Every LoRALinear of the tree with its path, in order.
std::vector<std::pair<std::string, nn::LoRALinearImpl*>> lora_layers(const torch::nn::Module& model);

/// Of slots and banks: A ~ U(±1/√in_features) from the counters (seed, parameter's name), B = 0.
void initialise(torch::nn::Module& model, uint64_t seed);

/// Makes the parameters of each module whose path equals an item of `names` or ends with "." + item trainable; returns
/// the paths.
std::vector<std::string> train_modules(torch::nn::Module& model, const std::vector<std::string>& names);

void set_enabled(torch::nn::Module& model, bool enabled);
/// Merges every adapter into its base (see LoRALinear::merge).
void merge(torch::nn::Module& model);
void unmerge(torch::nn::Module& model);

/// The Frobenius norm of each adapter's update, ‖scaling · B A‖, by module path; of a bank, over all experts by
/// projection.
std::vector<std::pair<std::string, double>> update_norms(const torch::nn::Module& model);

/// The parameters that require a gradient, under their names in the tree.
NamedTensors trainable_parameters(const torch::nn::Module& model);

/// Writes a PEFT adapter directory: adapter_config.json, adapter_model.safetensors with every trainable parameter,
/// labels.json.
void save(const std::string& directory, const torch::nn::Module& model, const formats::AdapterConfig& config,
          const std::vector<std::string>& labels);

/// Fills the adapters and the modules in `saved_modules` (paths) from a PEFT adapter directory. Strict: every tensor of
/// the file is used, every adapter parameter found, with its shape. A saved module that the file lacks keeps the base
/// model's values. Throws Error{Data} naming file and tensor, all mistakes at once.
void load(const std::string& directory, torch::nn::Module& model, const std::vector<std::string>& saved_modules);

}  // namespace lathe::adapters
