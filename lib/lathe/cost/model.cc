#include "lathe/cost/model.h"

#include <algorithm>
#include <utility>

#include "lathe/arch/checkpoint.h"
#include "lathe/cost/parameters.h"
#include "lathe/recipe/precision.h"

namespace lathe::cost {
namespace {

constexpr const char* kExperts = ".experts.";

std::string module_of(const std::string& parameter) { return parameter.substr(0, parameter.rfind('.')); }

Storage storage_of(recipe::StorageType type) {
  return type == recipe::StorageType::BFloat16 ? Storage::BFloat16 : Storage::Float32;
}

// As new routers that choose by scores usually spread tokens. Of a capacity, no more is dropped than must be: more
// would only cost less.
ExpertLoad usual_load(const arch::MlpExperts& shape) {
  constexpr Amount kUsualFullest = 1.5;
  const bool limited = shape.capacity_factor > 0;
  return {shape.router == arch::MlpExperts::Router::ExpertChoice ? 1 : kUsualFullest,
          limited ? std::max(0.0, 1 - shape.capacity_factor) : 0};
}

}  // namespace

TrainedModel::TrainedModel(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                           std::vector<ExpertLoad> loads)
    : arch_(resolved.config.arch),
      num_labels_(std::max<int64_t>(2, static_cast<int64_t>(resolved.labels.size()))),
      max_length_(resolved.max_length),
      base_(count_parameters(arch_, num_labels_)),
      all_train_(!resolved.adapter),
      quant_(recipe.quant),
      loads_(std::move(loads)) {
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
  adapter_dropout_ = resolved.adapter && resolved.adapter->lora_dropout > 0;
  for (const arch::Target& target : resolved.targets) add_target(target);
  add_parameters(match, resolved.random);
}

void TrainedModel::add_target(const arch::Target& target) {
  const std::string& path = target.linear.path;
  const auto rank = static_cast<Amount>(target.rank);
  if (const auto found = linears_.find(path); found != linears_.end()) {
    found->second.rank = rank;
    found->second.adapter_dropout = adapter_dropout_;
    adapter_ += found->second.adapter_parameters();
    return;
  }
  const auto num_experts = static_cast<Amount>(target.linear.num_experts);
  const std::string projection = path.substr(path.rfind('.') + 1);
  expert_ranks_[path.substr(0, path.find(kExperts)) + "." + projection] += rank * num_experts;
  adapter_ += rank * num_experts * static_cast<Amount>(target.linear.in_features + target.linear.out_features);
}

ExpertsCost TrainedModel::experts(const std::string& path, int64_t layer, int64_t in_features, int64_t hidden_features,
                                  bool training) const {
  ExpertsCost cost{path, *arch::mlp_experts(arch_)};
  cost.load = usual_load(cost.shape);
  if (static_cast<size_t>(layer) < loads_.size()) cost.load = loads_[static_cast<size_t>(layer)];
  cost.in_features = static_cast<Amount>(in_features);
  cost.hidden_features = static_cast<Amount>(hidden_features);
  cost.trains = trains(path + ".experts");
  cost.router_trains = trains(path + ".gate");
  cost.training = training;
  const auto storage = [&](const char* projection) {
    if (cost.trains) return Storage::Float32;
    return is_quantised(path + kExperts + projection) ? Storage::FourBit : storage_;
  };
  cost.up_storage = storage("up_proj");
  cost.down_storage = storage("down_proj");
  cost.compute = cost.trains ? Storage::Float32 : compute_;
  cost.adapter_dropout = adapter_dropout_;
  const auto ranks = [&](const char* projection) {
    const auto found = expert_ranks_.find(path + "." + projection);
    return found == expert_ranks_.end() ? 0 : found->second;
  };
  cost.up_ranks = ranks("up_proj");
  cost.down_ranks = ranks("down_proj");
  for (const arch::LinearSpec& linear : arch::shared_expert_linears(path, cost.shape, in_features, hidden_features))
    cost.shared.push_back(linears_.at(linear.path));
  return cost;
}

ExpertsCost TrainedModel::experts(const std::string& path, const arch::MoEArch& shape) const {
  arch::MlpExperts experts;
  experts.num_experts = shape.num_experts;
  experts.top_k = shape.top_k;
  experts.aux_loss_weight = 0;
  ExpertsCost cost{path, experts};
  cost.in_features = static_cast<Amount>(shape.hidden_size);
  cost.hidden_features = static_cast<Amount>(shape.expert_size);
  cost.trains = cost.router_trains = trains(path);
  cost.up_storage = cost.down_storage = cost.trains          ? Storage::Float32
                                        : is_quantised(path) ? Storage::FourBit
                                                             : storage_;
  cost.compute = cost.trains ? Storage::Float32 : compute_;
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

void TrainedModel::add_parameters(const arch::CheckpointMatch& match, bool random) {
  trainable_ = adapter_;
  weight_bytes_ = adapter_ * kFloatBytes;
  struct Loaded {
    Amount bytes, drawn;
  };
  std::vector<Loaded> dense, packed;
  Amount files = 0;
  for (const arch::CheckpointMatch::Item& item : match.items) {
    const Amount count = num_elements(item.parameter.shape);
    const std::string module = module_of(item.parameter.name);
    const bool trained = trains(module);
    trainable_ += trained ? count : 0;
    const auto linear = linears_.find(module);
    if (linear != linears_.end() && item.parameter.name.ends_with(".bias")) linear->second.bias = true;
    const size_t dimensions = item.parameter.shape.size();
    const bool matrix = (dimensions == 2 || dimensions == 3) && !trained;  // not a stem's convolution
    // A decoder's experts are matrices of its checkpoint like others.
    const bool expert = dimensions == 3 && is_quantised(arch::is_causal(arch_) ? module : item.parameter.name);
    const Storage storage = expert ? Storage::FourBit : linear != linears_.end() ? linear->second.storage : storage_;
    const Amount bytes = matrix ? matrix_bytes(item, storage) : count * kFloatBytes;
    weight_bytes_ += bytes;
    if (trained && item.tensor != nullptr) files += static_cast<Amount>(item.tensor->info.num_bytes());
    const Amount drawn = count * kFloatBytes / (expert ? static_cast<Amount>(item.parameter.shape[0]) : 1);
    (matrix && storage == Storage::FourBit ? packed : dense)
        .push_back({bytes, random && bytes < count * kFloatBytes ? drawn : 0});
  }
  // In the order of loading: what is drawn in float32 and stored in less lives twice; four bits come last.
  Amount loaded = adapter_ * kFloatBytes;
  dense.insert(dense.end(), packed.begin(), packed.end());
  for (const auto& [bytes, drawn] : dense) {
    loaded += bytes;
    loading_peak_bytes_ = std::max(loading_peak_bytes_, loaded + drawn);
  }
  loading_peak_bytes_ = std::max(loading_peak_bytes_, weight_bytes_ + files);
}

// Of a matrix that does not train; each expert is packed by itself.
Amount TrainedModel::matrix_bytes(const arch::CheckpointMatch::Item& item, Storage storage) const {
  const std::vector<int64_t>& shape = item.parameter.shape;
  const Amount count = num_elements(shape);
  if (storage != Storage::FourBit) return count * bytes_per_element(storage_);
  if (item.four_bit != nullptr) return stored_.at(module_of(item.parameter.name));
  const Amount matrices = shape.size() == 3 ? static_cast<Amount>(shape[0]) : 1;
  return matrices * four_bit_bytes(count / matrices, static_cast<Amount>(quant_.blocksize), quant_.double_quant);
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
