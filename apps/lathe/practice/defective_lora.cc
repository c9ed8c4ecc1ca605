#include "practice/defective_lora.h"

#include <ATen/ops/zeros.h>

#include <cmath>
#include <utility>

#include "lathe/base/random.h"
#include "lathe/nn/counter_tensors.h"
#include "practice/measure.h"

namespace lathe::app::practice {
namespace {

struct Draw {
  std::string name;

  Tensor normal(at::IntArrayRef shape) const { return drawn(shape, name.c_str()); }
  Tensor uniform(at::IntArrayRef shape, double bound) const {
    const Tensor unit = nn::counter_uniform(shape, make_key(name_key("practice"), name_key(name))) * 2 - 1;
    return (unit * bound).to(at::kFloat);
  }
};

struct FrozenBase {
  const char* code;
  void (*run)(torch::nn::Linear& base_layer);
};
struct DrawnMatrix {
  const char* code;
  Tensor (*run)(int64_t features, int64_t rank, const Draw& draw);
};
struct Output {
  const char* code;
  Tensor (*run)(torch::nn::Linear& base_layer, const Tensor& A, const Tensor& B, double alpha, int64_t rank,
                const Tensor& x);
};

// Statements that are both compiled and shown.
#define LATHE_SHOWN_BASE(...)                                                         \
  {                                                                                   \
#__VA_ARGS__, []([[maybe_unused]] torch::nn::Linear & base_layer) { __VA_ARGS__ } \
  }
#define LATHE_SHOWN_MATRIX(matrix, features, value)                                                       \
  {                                                                                                       \
#matrix " = " #value ";",                                                                             \
        [](int64_t features, int64_t rank, [[maybe_unused]] const Draw& draw) -> Tensor { return value; } \
  }
#define LATHE_SHOWN_OUTPUT(...)                                                                                       \
  {                                                                                                                   \
#__VA_ARGS__, [](torch::nn::Linear & base_layer, const Tensor& A, const Tensor& B, [[maybe_unused]] double alpha, \
                     [[maybe_unused]] int64_t rank, const Tensor& x) { __VA_ARGS__ }                                  \
  }

FrozenBase base_of(const LoraDefects& defects) {
  if (defects.trains_base) return LATHE_SHOWN_BASE();
  return LATHE_SHOWN_BASE(for (Tensor& weight : base_layer->parameters()) weight.requires_grad_(false););
}

DrawnMatrix a_of(const LoraDefects& defects) {
  if (defects.constant_scale) return LATHE_SHOWN_MATRIX(A, in_features, draw.normal({in_features, rank}) * 0.02);
  return LATHE_SHOWN_MATRIX(A, in_features, draw.uniform({in_features, rank}, 1 / std::sqrt(in_features)));
}

DrawnMatrix b_of(const LoraDefects& defects) {
  if (defects.random_b) return LATHE_SHOWN_MATRIX(B, out_features, draw.normal({rank, out_features}) * 0.02);
  return LATHE_SHOWN_MATRIX(B, out_features, at::zeros({rank, out_features}));
}

Output output_of(const LoraDefects& defects) {
  if (defects.unscaled) return LATHE_SHOWN_OUTPUT(return base_layer->forward(x) + x.matmul(A).matmul(B););
  return LATHE_SHOWN_OUTPUT(return base_layer->forward(x) + x.matmul(A).matmul(B) * (alpha / rank););
}

}  // namespace

std::string lora_code(const LoraDefects& defects) {
  const auto line = [](const char* code) { return *code == '\0' ? "" : "    " + std::string(code) + "\n"; };
  return "ExamLoRA(base_layer, rank, alpha) {\n" + line(base_of(defects).code) + line(a_of(defects).code) +
         line(b_of(defects).code) + "}\nforward(x) {\n" + line(output_of(defects).code) + "}\n";
}

ExamLoRA::ExamLoRA(torch::nn::Linear base, int64_t rank, double alpha, LoraDefects defects, const std::string& name)
    : base_layer(register_module("base_layer", std::move(base))), rank_(rank), alpha_(alpha), defects_(defects) {
  base_of(defects).run(base_layer);
  A = register_parameter("A", a_of(defects).run(base_layer->options.in_features(), rank, {name + ".A"}));
  B = register_parameter("B", b_of(defects).run(base_layer->options.out_features(), rank, {name + ".B"}));
}

Tensor ExamLoRA::forward(const Tensor& x) { return output_of(defects_).run(base_layer, A, B, alpha_, rank_, x); }

}  // namespace lathe::app::practice
