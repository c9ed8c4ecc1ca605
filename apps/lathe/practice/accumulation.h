#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "lathe/optim/optimizer.h"

namespace lathe::app::practice {

using at::Tensor;

/// What stands in the two blanks of the exam's loop. All but Mended are wrong on purpose.
enum class Filling {
  Mended,      ///< (loss / accumulation_steps).backward(); step and zero_grad at the end of a window
  Undivided,   ///< loss.backward()
  ZeroFirst,   ///< zero_grad before every backward pass
  StepAlways,  ///< step and zero_grad after every micro-batch
  NeverZero,   ///< no zero_grad
};
/// The statements that run, a line each.
std::string filling_code(Filling filling);

/// The exam's training loop: it takes these and has computed `loss`. Lathe's own loop is train::Stepper.
struct ExamLoop {
  struct Batch {
    Tensor inputs, targets;
  };

  std::function<Tensor(const Tensor&)> model;
  std::vector<Batch> loader;
  std::function<Tensor(const Tensor& outputs, const Tensor& targets)> criterion;  ///< a mean over the batch
  optim::Optimizer& optimizer;
  double lr = 0;
  int64_t accumulation_steps = 4;
  std::function<void()> before_step = [] {};

  /// One pass over the loader; the loss of each batch.
  std::vector<double> run(Filling filling) const;
};

}  // namespace lathe::app::practice
