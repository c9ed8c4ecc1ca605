#include "lathe/train/measures.h"

#include <cmath>

namespace lathe::train {
namespace {

double f1_of_label(const ConfusionCounts& counts, size_t label) {
  int64_t predicted = 0, actual = 0;
  for (size_t other = 0; other < counts.size(); ++other) {
    predicted += counts[other][label];
    actual += counts[label][other];
  }
  return predicted + actual == 0
             ? 0
             : 2.0 * static_cast<double>(counts[label][label]) / static_cast<double>(predicted + actual);
}

}  // namespace

double accuracy_of(const ConfusionCounts& counts) {
  int64_t right = 0, all = 0;
  for (size_t truth = 0; truth < counts.size(); ++truth) {
    right += counts[truth][truth];
    for (const int64_t count : counts[truth]) all += count;
  }
  return all == 0 ? 0 : static_cast<double>(right) / static_cast<double>(all);
}

double f1_of(const ConfusionCounts& counts) {
  if (counts.size() == 2) return f1_of_label(counts, 1);
  double sum = 0;
  for (size_t label = 0; label < counts.size(); ++label) sum += f1_of_label(counts, label);
  return counts.empty() ? 0 : sum / static_cast<double>(counts.size());
}

double measure_of(const Evaluation& evaluation, recipe::Measure measure) {
  switch (measure) {
    case recipe::Measure::EvalLoss:
      return evaluation.eval_loss;
    case recipe::Measure::Perplexity:
      return std::exp(evaluation.eval_loss);
    case recipe::Measure::Accuracy:
      return evaluation.accuracy;
    case recipe::Measure::F1:
      break;
  }
  return evaluation.f1;
}

bool is_better(recipe::Measure measure, double value, double best) {
  const bool lower = measure == recipe::Measure::EvalLoss || measure == recipe::Measure::Perplexity;
  return lower ? value < best : value > best;
}

}  // namespace lathe::train
