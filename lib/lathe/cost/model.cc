#include "lathe/cost/model.h"

#include <algorithm>

#include "lathe/arch/checkpoint.h"
#include "lathe/cost/parameters.h"
#include "lathe/recipe/precision.h"

namespace lathe::cost {
namespace {

std::string module_of(const std::string& parameter) { return parameter.substr(0, parameter.rfind('.')); }

Storage storage_of(recipe::StorageType type) {
  return type == recipe::StorageType::BFloat16 ? Storage::BFloat16 : Storage::Float32;
}

}  // namespace

TrainedModel::TrainedModel(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved)
    : arch_(resolved.config.arch),
      num_labels_(std::max<int64_t>(2, static_cast<int64_t>(resolved.labels.size()))),
      all_train_(!resolved.adapter),
      quant_(recipe.quant) {
  const arch::CheckpointMatch match = resolved.match(num_labels_);
  const recipe::Precision precision =
      recipe::resolve_precision(resolved.stored_dtype(recipe.model.dtype), recipe.model.compute, match);
  storage_ = storage_of(precision.storage);
  compute_ = storage_of(precision.compute);
  if (resolved.adapter) saved_modules_ = resolved.adapter->modules_to_save;
  for (const arch::CheckpointMatch::Item& item : match.items) {
    if (item.four_bit == nullptr) continue;
    const uint64_t text = item.four_bit->quant_state.info.num_bytes();
    stored_[module_of(item.parameter.name)] = static_cast<Amount>(item.four_bit->num_bytes() - text);
  }
  for (const arch::LinearSpec& spec : arch::classifier_linears(arch_, num_labels_)) {
    LinearCost linear{spec.path, static_cast<Amount>(spec.in_features), static_cast<Amount>(spec.out_features)};
    linear.bias = false;  // unless it is among the parameters
    linear.trains = trains(spec.path);
    // A module that trains beside an adapter is plain float32.
    linear.storage = linear.trains && !all_train_ ? Storage::Float32 : storage_;
    linear.compute = linear.trains && !all_train_ ? Storage::Float32 : compute_;
    if (is_quantised(spec.path)) linear.storage = Storage::FourBit;
    linears_.emplace(spec.path, linear);
  }
  for (const arch::Target& target : resolved.targets) {
    LinearCost& linear = linears_.at(target.linear.path);
    linear.rank = static_cast<Amount>(target.rank);
    linear.adapter_dropout = resolved.adapter->lora_dropout > 0;
    adapter_ += linear.adapter_parameters();
  }
  add_parameters(match);
}

ExpertsCost TrainedModel::experts(const std::string& path, int64_t in_features, int64_t hidden_features) const {
  const arch::MlpExperts& shape = *arch::mlp_experts(arch_);
  ExpertsCost cost{path,
                   static_cast<Amount>(shape.num_experts),
                   static_cast<Amount>(shape.top_k),
                   static_cast<Amount>(in_features),
                   static_cast<Amount>(hidden_features),
                   trains(path)};
  cost.storage = cost.trains ? Storage::Float32 : storage_;
  return cost;
}

ExpertsCost TrainedModel::experts(const std::string& path, const arch::MoEArch& shape) const {
  ExpertsCost cost{path,
                   static_cast<Amount>(shape.num_experts),
                   static_cast<Amount>(shape.top_k),
                   static_cast<Amount>(shape.hidden_size),
                   static_cast<Amount>(shape.expert_size),
                   trains(path)};
  cost.storage = cost.trains ? Storage::Float32 : is_quantised(path) ? Storage::FourBit : storage_;
  cost.gated = true;
  return cost;
}

bool TrainedModel::trains(const std::string& path) const {
  return all_train_ || arch::is_within_any(path, saved_modules_);
}

bool TrainedModel::is_quantised(const std::string& path) const {
  if (trains(path)) return false;
  if (!stored_.empty()) return stored_.contains(path);
  return quant_.type != recipe::QuantType::None && !arch::is_within_any(path, quant_.skip_modules);
}

void TrainedModel::add_parameters(const arch::CheckpointMatch& match) {
  trainable_ = adapter_;
  weight_bytes_ = adapter_ * kFloatBytes;
  for (const arch::CheckpointMatch::Item& item : match.items) {
    const Amount count = num_elements(item.parameter.shape);
    const std::string module = module_of(item.parameter.name);
    const bool trained = trains(module);
    base_ += count;
    trainable_ += trained ? count : 0;
    const auto linear = linears_.find(module);
    if (linear != linears_.end() && item.parameter.name.ends_with(".bias")) linear->second.bias = true;
    const bool matrix = item.parameter.shape.size() >= 2 && !trained;
    // A decoder's experts are matrices of its checkpoint like others.
    const bool expert = arch::is_causal(arch_) && item.parameter.shape.size() == 3 && is_quantised(module);
    const Storage storage = expert ? Storage::FourBit : linear != linears_.end() ? linear->second.storage : storage_;
    weight_bytes_ += matrix ? matrix_bytes(item, storage) : count * kFloatBytes;
    if (trained && item.tensor != nullptr) loading_bytes_ += static_cast<Amount>(item.tensor->info.num_bytes());
  }
}

// Of a matrix that does not train.
Amount TrainedModel::matrix_bytes(const arch::CheckpointMatch::Item& item, Storage storage) const {
  const Amount count = num_elements(item.parameter.shape);
  if (storage != Storage::FourBit) return count * bytes_per_element(storage_);
  return item.four_bit != nullptr ? stored_.at(module_of(item.parameter.name))
                                  : four_bit_bytes(count, static_cast<Amount>(quant_.blocksize), quant_.double_quant);
}

Value forward(Ledger& ledger, const TrainedModel& model, const Batch& batch, bool training,
              const recipe::Checkpointing& policy) {
  return std::visit([&](const auto& arch) { return forward(ledger, model, arch, batch, training, policy); },
                    model.arch());
}

void backward(Ledger& ledger, const TrainedModel& model, const Value& output) {
  if (arch::is_causal(model.arch())) {
    ledger.backward(output, ledger.allocate(output.buffer->bytes()));
  } else {
    cross_entropy_backward(ledger, output);
  }
}

Amount logits_bytes(const TrainedModel& model, const Batch& batch) {
  if (const auto* decoder = std::get_if<arch::DecoderArch>(&model.arch()))
    return std::min(batch.rows(), kHeadRows) * static_cast<Amount>(decoder->vocab_size) * kFloatBytes;
  return batch.num_samples * static_cast<Amount>(model.num_labels()) * kFloatBytes;
}

}  // namespace lathe::cost
