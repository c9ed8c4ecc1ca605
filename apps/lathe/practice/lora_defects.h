#pragma once

#include <functional>
#include <string>
#include <vector>

#include "lathe/optim/optimizer.h"
#include "practice/defective_lora.h"
#include "practice/reference.h"

/// The experiments of question 4b: the same for the exam's layer under any defects and for the library's, each beside
/// what the formulas give for the same draws in float64.
namespace lathe::app::practice {

struct LoraCase {
  bool library = false;  ///< nn::LoRALinear; else ExamLoRA with these defects
  LoraDefects defects{};
  int64_t rank = 4;
  double alpha = 1;
  int64_t width = 256;  ///< in_features
  int64_t draw = 0;     ///< which of many draws of A
};
inline constexpr int64_t kLoraOutputs = 64, kShiftSamples = 128, kShiftDraws = 16, kStepSamples = 48, kTrainSteps = 200,
                         kJudgedStep = 30;

/// A layer with its base W [64, width], N(0, 1 / width).
struct LoraUnderTest {
  Tensor base_weight;
  std::function<Tensor(const Tensor&)> forward = {}, base_forward = {};
  optim::NamedTensors trained = {};  ///< what requires a gradient
};
LoraUnderTest build(const LoraCase& which);
/// The same by the formulas.
ReferenceLayer reference_of(const LoraCase& which);

/// |y - W x| / |W x| before any training, the mean square over some draws of A and B; W x as the layer itself computes
/// it.
double shift_at_start(const LoraCase& which);
double reference_shift(const LoraCase& which);
/// How far one step of Adam moves the output for a sample that the step saw alone, as a mean over samples
/// and draws of A.
double first_step_change(const LoraCase& which);
double reference_step_change(const LoraCase& which);
/// Elements that require a gradient.
int64_t trainable_parameters(const LoraCase& which);

struct LoraTraining {
  std::vector<double> losses;
  bool base_moved = false;  ///< whether any bit of W changed
};
/// Trains towards W + a rank-2 change, with Adam.
LoraTraining train_lora(const LoraCase& which, int64_t num_steps = kTrainSteps);
/// Up to kJudgedStep.
std::vector<double> reference_losses(const LoraCase& which);

}  // namespace lathe::app::practice
