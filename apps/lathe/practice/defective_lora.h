#pragma once

#include <torch/nn/modules/linear.h>

#include <string>

namespace lathe::app::practice {

using at::Tensor;

/// What is wrong with the exam's LoRA layer. Each can be mended on its own.
struct LoraDefects {
  bool random_b = false;        ///< B is drawn from N(0, 0.02²), not zero
  bool unscaled = false;        ///< the product is not multiplied by alpha / rank
  bool trains_base = false;     ///< the base layer is not frozen
  bool constant_scale = false;  ///< A is drawn from N(0, 0.02²), whatever its fan-in, not kaiming-uniform

  static LoraDefects all() { return {true, true, true, true}; }
};

/// The statements of the layer that run under these defects.
std::string lora_code(const LoraDefects& defects);

/// The exam's LoRA layer, DEFECTIVE ON PURPOSE: y = base(x) + (x A) B with A [in, rank] and B [rank, out]. The mended
/// layer is nn::LoRALinear; without any defect this one computes the same.
class ExamLoRA : public torch::nn::Module {
 public:
  /// Draws from counters, which differ with `name`.
  ExamLoRA(torch::nn::Linear base_layer, int64_t rank, double alpha, LoraDefects defects, const std::string& name);
  Tensor forward(const Tensor& x);

  torch::nn::Linear base_layer;
  Tensor A, B;

 private:
  int64_t rank_;
  double alpha_;
  LoraDefects defects_;
};

}  // namespace lathe::app::practice
