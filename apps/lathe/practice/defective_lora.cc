#include "practice/defective_lora.h"

#include <ATen/ops/zeros.h>

#include <cmath>
#include <utility>

#include "lathe/base/random.h"
#include "lathe/nn/counter_tensors.h"
#include "practice/measure.h"

namespace lathe::app::practice {

ExamLoRA::ExamLoRA(torch::nn::Linear base, int64_t rank, double alpha, LoraDefects defects, const std::string& name)
    : base_layer(register_module("base_layer", std::move(base))),
      scaling_(defects.unscaled ? 1 : alpha / static_cast<double>(rank)) {
  const int64_t in = base_layer->options.in_features(), out = base_layer->options.out_features();
  for (Tensor& parameter : base_layer->parameters()) parameter.requires_grad_(defects.trains_base);
  const std::string a = name + ".A", b = name + ".B";
  const Tensor uniform = nn::counter_uniform({in, rank}, make_key(name_key("practice"), name_key(a))) * 2 - 1;
  A = register_parameter("A", defects.constant_scale ? drawn({in, rank}, a.c_str()) * 0.02
                                                     : (uniform / std::sqrt(static_cast<double>(in))).to(at::kFloat));
  B = register_parameter("B", defects.random_b ? drawn({rank, out}, b.c_str()) * 0.02 : at::zeros({rank, out}));
}

Tensor ExamLoRA::forward(const Tensor& x) { return base_layer->forward(x) + x.matmul(A).matmul(B) * scaling_; }

}  // namespace lathe::app::practice
