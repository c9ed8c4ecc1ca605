#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "lathe/nn/pass.h"
#include "lathe/optim/optimizer.h"
#include "lathe/train/evaluate.h"

namespace lathe::train {

/// What a run trains: how samples become a loss, how the result is measured and published. The driver (steps,
/// checkpoints, signals, metrics) knows nothing else.
class Task {
 public:
  virtual ~Task() = default;

  virtual torch::nn::Module& model() = 0;
  /// What is trained, under the names that checkpoints and optimizer groups use.
  virtual optim::NamedTensors trained_parameters() = 0;

  virtual int64_t num_samples() const = 0;
  /// Hashes of what a resumed run must find unchanged, by name ("the training data").
  virtual std::map<std::string, uint64_t> fingerprints() const = 0;
  /// Labelled items of these samples: what the sum of their losses is divided by.
  virtual int64_t num_items(const std::vector<int64_t>& samples) const = 0;

  struct BatchLoss {
    at::Tensor sum;      ///< over the items; a scalar
    int64_t tokens = 0;  ///< without padding
  };
  /// Says that loss() will be called with these and a pass of this key: its input may be prepared meanwhile.
  virtual void announce(const std::vector<int64_t>& /*samples*/, uint64_t /*key*/) {}
  virtual BatchLoss loss(const std::vector<int64_t>& samples, const nn::Pass& pass) = 0;
  /// The model's input for these samples, for the dump of a step that went wrong.
  virtual Json describe(const std::vector<int64_t>& samples) const = 0;

  virtual bool has_evaluation() const = 0;
  /// Throws Error{Interrupted} when `cancelled` says yes between batches.
  virtual Evaluation evaluate(const std::function<bool()>& cancelled) = 0;
  /// The names of what an evaluation counts.
  virtual const std::vector<std::string>& labels() const = 0;
  /// What people see of a sample that was evaluated: place, and text or picture.
  virtual Json show(int64_t index) const = 0;

  /// The directories of results: names ("adapter", "model") and what fills them.
  struct Result {
    std::string name;
    std::function<void(const std::filesystem::path&)> fill;
  };
  virtual std::vector<Result> results() = 0;
};

}  // namespace lathe::train
