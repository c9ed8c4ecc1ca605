#pragma once

#include <ATen/core/TensorBody.h>

#include <memory>
#include <string>
#include <vector>

#include "lathe/base/json.h"
#include "lathe/nn/moe.h"
#include "lathe/optim/optimizer.h"

namespace lathe::train {

/// How the experts of a model were used in one window: what metrics.jsonl has of it.
struct BalanceMetrics {
  double loss = 0;                        ///< the weighted balance terms, of all layers
  double entropy = 1;                     ///< of the least even layer
  double max_vio = 0;                     ///< of the same
  int64_t dead = 0;                       ///< experts, in all layers
  std::vector<double> dropped;            ///< of each layer, the share of the assignments; in the file their mean
  std::vector<std::vector<double>> load;  ///< of each layer, the experts' shares

  /// Which layer collapses and what to turn, where a layer's entropy is under a half or half of its experts are dead;
  /// empty otherwise, and for windows of fewer than 4 assignments per expert.
  std::string collapse;

  Json to_json() const;
};

/// The mixtures of experts of a model through the windows of a run. The balance loss is a function of a whole window's
/// sums: a window of several micro-batches is looked at before it is trained on.
class Balance {
 public:
  explicit Balance(const torch::nn::Module& model) : layers_(nn::moe_layers(model)) {}

  bool empty() const { return layers_.empty(); }
  /// Whether there are terms of a loss.
  bool has_losses() const;
  /// The sums of the window are complete: what follows trains under them.
  void stop_counting();
  /// The balance loss of the window with the gradient of the last micro-batch, of all layers; undefined without terms.
  at::Tensor loss() const;
  BalanceMetrics metrics() const;
  /// After the optimizer step: moves the biases.
  void end_window();
  /// After a step that was left out.
  void forget_window();

 private:
  std::vector<std::shared_ptr<nn::MoELayerImpl>> layers_;
};

/// Says once that routing collapses, and not before ten windows in a row agree: one may be uneven by chance.
class CollapseWatch {
 public:
  /// The warning, or nothing.
  std::string see(int64_t step, const BalanceMetrics& metrics);

 private:
  int64_t in_a_row_ = 0;
  bool warned_ = false;
};

/// What training changes: `parameters`, and the biases under which the model's routers choose.
optim::NamedTensors with_selection_biases(optim::NamedTensors parameters, const torch::nn::Module& model);

}  // namespace lathe::train
