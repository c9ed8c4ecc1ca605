#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lathe/base/json.h"

namespace lathe::report {

struct Run;

/// evaluation.json: how a classifier did on the evaluation data, class by class, and its worst mistakes.
struct ClassEvaluation {
  struct Class {
    std::string label;
    int64_t samples = 0;
    std::optional<double> accuracy{};    ///< none without samples
    std::vector<int64_t> predictions{};  ///< how many were taken for each label; empty where there are many
  };
  struct Mistake {
    std::string place, text;
    std::string picture;  ///< a PNG in base64, or empty
    size_t truth = 0, predicted = 0;
    double truth_probability = 0, predicted_probability = 0;
  };
  int64_t step = 0, samples = 0;
  std::vector<Class> classes;
  std::vector<Mistake> worst;
};

/// Throws Error{Data} naming `file` and the key of whatever does not fit.
ClassEvaluation read_class_evaluation(const Json& json, const std::string& file);

/// A confusion matrix (of at most 30 labels, else the classes with their accuracy) and the worst mistakes of each run,
/// as HTML; empty when no run has them.
std::string evaluation_section(const std::vector<Run>& runs);

}  // namespace lathe::report
