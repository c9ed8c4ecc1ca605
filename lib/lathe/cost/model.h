#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "lathe/cost/ops.h"
#include "lathe/cost/parameters.h"
#include "lathe/recipe/resolve.h"

namespace lathe::cost {

/// The samples of a micro-batch, all as long as the recipe allows: what a plan must reckon with.
struct Batch {
  Amount num_samples = 0;
  Amount length = 0;  ///< tokens of each

  Amount rows() const { return num_samples * length; }
};

/// A recipe's model as a training step sees it: which layers are adapted, what trains, how matrices are kept.
class TrainedModel {
 public:
  /// `loads`: as make_plan() takes them.
  TrainedModel(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, std::vector<ExpertLoad> loads = {});

  const arch::Arch& arch() const { return arch_; }
  int64_t num_labels() const { return num_labels_; }
  int64_t max_length() const { return max_length_; }
  const LinearCost& linear(const std::string& path) const { return linears_.at(path); }
  ModuleCost module(const std::string& path) const { return {path, trains(path)}; }
  /// Of the experts at `path`, which the arch has in this layer.
  ExpertsCost experts(const std::string& path, int64_t layer, int64_t in_features, int64_t hidden_features,
                      bool training) const;
  /// Of a decoder's block at `path`.
  ExpertsCost experts(const std::string& path, const arch::MoEArch& shape) const;
  Storage storage() const { return storage_; }
  bool all_train() const { return all_train_; }

  const ParameterCount& base_parameters() const { return base_; }
  Amount adapter_parameters() const { return adapter_; }
  Amount trainable_parameters() const { return trainable_; }
  /// What the parameters occupy, mapped or allocated; what lives at most while they are loaded or drawn.
  Amount weight_bytes() const { return weight_bytes_; }
  Amount loading_peak_bytes() const { return loading_peak_bytes_; }

 private:
  bool trains(const std::string& path) const;
  bool is_quantised(const std::string& path) const;
  Amount matrix_bytes(const arch::CheckpointMatch::Item& item, Storage storage) const;
  void add_target(const arch::Target& target);
  void add_parameters(const arch::CheckpointMatch& match, bool random);

  arch::Arch arch_;
  int64_t num_labels_, max_length_;
  ParameterCount base_;
  Storage storage_, compute_;
  bool all_train_;
  recipe::Quant quant_;
  std::vector<ExpertLoad> loads_;
  std::vector<std::string> saved_modules_;
  std::unordered_map<std::string, Amount> stored_;  // bytes of the checkpoint's weights in four bits, by module
  std::unordered_map<std::string, LinearCost> linears_;
  std::unordered_map<std::string, Amount> expert_ranks_;  // of adapters, summed over the experts, by projection
  bool adapter_dropout_ = false;
  Amount adapter_ = 0, trainable_ = 0, weight_bytes_ = 0, loading_peak_bytes_ = 0;
};

/// The forward pass of the family's classifier: logits [num_samples, num_labels]; of a decoder: the loss of each token.
Value forward(Ledger& ledger, const TrainedModel& model, const Batch& batch, bool training,
              const recipe::Checkpointing& policy);
/// From what forward() gave to the parameters.
void backward(Ledger& ledger, const TrainedModel& model, const Value& output);
/// The logits that exist at a time.
Amount logits_bytes(const TrainedModel& model, const Batch& batch);

/// The shadow of models::BertForSequenceClassification.
Value forward(Ledger& ledger, const TrainedModel& model, const arch::BertArch& arch, const Batch& batch, bool training,
              const recipe::Checkpointing& policy);
/// What Lathe's decoders will be: no module is built of them yet.
Value forward(Ledger& ledger, const TrainedModel& model, const arch::DecoderArch& arch, const Batch& batch,
              bool training, const recipe::Checkpointing& policy);
/// The shadow of models::Mixer.
Value forward(Ledger& ledger, const TrainedModel& model, const arch::MixerArch& arch, const Batch& batch, bool training,
              const recipe::Checkpointing& policy);

}  // namespace lathe::cost
