#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lathe/base/json.h"
#include "lathe/recipe/values.h"

namespace lathe::train {

/// counts[truth][predicted].
using ConfusionCounts = std::vector<std::vector<int64_t>>;
double accuracy_of(const ConfusionCounts& counts);
double f1_of(const ConfusionCounts& counts);

/// A sample that a classifier took for something else.
struct Mistaken {
  int64_t sample = 0;
  int64_t truth = 0, predicted = 0;  ///< labels
  double truth_probability = 0, predicted_probability = 0;
};

/// What an evaluation measures.
struct Evaluation {
  double eval_loss = 0;  ///< mean cross-entropy
  double accuracy = 0;
  double f1 = 0;  ///< of the last label for two classes, the mean over the classes otherwise; 0 where undefined
  int64_t samples = 0;
  std::optional<double> top5_accuracy{};  ///< of more than five labels: the truth is among the five likeliest
  ConfusionCounts confusion{};
  std::vector<Mistaken> worst{};  ///< those to whose truth the least probability was given, at most kWorst
};
inline constexpr size_t kWorst = 24;

/// Counts an evaluation up, sample by sample, in their order.
class Scores {
 public:
  explicit Scores(size_t num_labels) : confusion_(num_labels, std::vector<int64_t>(num_labels)) {}

  /// The next sample's logits, one per label, and its label.
  void add(const float* logits, int64_t label);
  /// `loss` is the sum over the samples.
  Evaluation evaluation(double loss) const;

 private:
  ConfusionCounts confusion_;
  int64_t samples_ = 0, in_top5_ = 0;
  std::vector<Mistaken> worst_;
};

/// What metrics.jsonl and `lathe eval` say of an evaluation: eval_loss, accuracy, f1, and top5_accuracy where there is
/// one.
Json to_json(const Evaluation& evaluation);
/// Labels, their samples and accuracy, and of at most 100 labels the confusion matrix.
Json classes_to_json(const Evaluation& evaluation, const std::vector<std::string>& labels);

/// The measure of that name; perplexity = exp(eval_loss).
double measure_of(const Evaluation& evaluation, recipe::Measure measure);
/// Whether `value` is better than `best`: lower for eval_loss and perplexity, higher for the others.
bool is_better(recipe::Measure measure, double value, double best);

}  // namespace lathe::train
