#include "lathe/train/measures.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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

void Scores::add(const float* logits, int64_t label) {
  const size_t num_labels = confusion_.size();
  const auto truth = static_cast<size_t>(label);
  const float* best = std::max_element(logits, logits + num_labels);
  const auto predicted = static_cast<size_t>(best - logits);
  ++confusion_[truth][predicted];
  // Of equal logits the first counts more, as for the likeliest.
  const auto above = std::count_if(logits, logits + num_labels, [&](const float& other) {
    return other > logits[truth] || (other == logits[truth] && &other < logits + truth);
  });
  in_top5_ += above < 5 ? 1 : 0;
  if (predicted != truth) {
    const double sum = std::accumulate(logits, logits + num_labels, 0.0, [&](double total, float logit) {
      return total + std::exp(double{logit} - *best);
    });
    const double truth_probability = std::exp(double{logits[truth]} - *best) / sum;
    const auto place = std::upper_bound(
        worst_.begin(), worst_.end(), truth_probability,
        [](double probability, const Mistaken& other) { return probability < other.truth_probability; });
    worst_.insert(place, {samples_, label, static_cast<int64_t>(predicted), truth_probability, 1 / sum});
    if (worst_.size() > kWorst) worst_.pop_back();
  }
  ++samples_;
}

Evaluation Scores::evaluation(double loss) const {
  const auto samples = static_cast<double>(std::max<int64_t>(1, samples_));
  Evaluation result{loss / samples, accuracy_of(confusion_), f1_of(confusion_), samples_};
  if (confusion_.size() > 5) result.top5_accuracy = static_cast<double>(in_top5_) / samples;
  result.confusion = confusion_;
  result.worst = worst_;
  return result;
}

Json to_json(const Evaluation& evaluation) {
  Json json = {{"eval_loss", evaluation.eval_loss}, {"accuracy", evaluation.accuracy}, {"f1", evaluation.f1}};
  if (evaluation.top5_accuracy) json["top5_accuracy"] = *evaluation.top5_accuracy;
  return json;
}

Json classes_to_json(const Evaluation& evaluation, const std::vector<std::string>& labels) {
  constexpr size_t kMostLabels = 100;
  Json json = {{"labels", labels}};
  for (size_t truth = 0; truth < labels.size(); ++truth) {
    const auto& row = evaluation.confusion[truth];
    const int64_t samples = std::accumulate(row.begin(), row.end(), int64_t{0});
    json["class_samples"].push_back(samples);
    json["class_accuracy"].push_back(
        samples == 0 ? Json(nullptr) : Json(static_cast<double>(row[truth]) / static_cast<double>(samples)));
  }
  if (labels.size() <= kMostLabels) json["confusion"] = evaluation.confusion;
  return json;
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
