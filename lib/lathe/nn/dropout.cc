#include "lathe/nn/dropout.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

namespace lathe::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kElementsPerTask = 1 << 14;

thread_local DropoutStream::State current_stream;

Tensor masked(const Tensor& x, kernels::Dropout dropout) {
  if (!uses_kernels(x)) return x * dropout_factors(x.sizes(), dropout, 0, x.options());
  const Tensor input = x.contiguous();
  Tensor output = at::empty_like(input);
  RECORD_FUNCTION("lathe::dropout", (std::vector<c10::IValue>{input, output}));
  const float* from = input.const_data_ptr<float>();
  float* to = output.data_ptr<float>();
  at::parallel_for(0, input.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    kernels::dropout(from + begin, to + begin, begin, end - begin, dropout);
  });
  return output;
}

struct DropoutFunction : torch::autograd::Function<DropoutFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, int64_t key, double rate) {
    ctx->saved_data["key"] = key;
    ctx->saved_data["rate"] = rate;
    return masked(x, {static_cast<uint64_t>(key), static_cast<float>(rate)});
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const kernels::Dropout dropout{static_cast<uint64_t>(ctx->saved_data["key"].toInt()),
                                   static_cast<float>(ctx->saved_data["rate"].toDouble())};
    return {masked(grads[0], dropout), Tensor(), Tensor()};
  }
};

}  // namespace

DropoutStream::DropoutStream(uint64_t key) : outer_(current_stream) { current_stream = {key, 0}; }

DropoutStream::~DropoutStream() { current_stream = outer_; }

uint64_t DropoutStream::next_key() { return make_key(current_stream.key, current_stream.count++); }

DropoutStream::State DropoutStream::state() { return current_stream; }

void DropoutStream::set_state(State state) { current_stream = state; }

bool uses_kernels(const Tensor& x) { return x.scalar_type() == at::kFloat && x.device().is_cpu(); }

Tensor dropout_factors(at::IntArrayRef shape, kernels::Dropout dropout, int64_t first_index,
                       const at::TensorOptions& options) {
  const Tensor ones = at::ones(shape, at::kFloat);
  kernels::dropout(ones.const_data_ptr<float>(), ones.data_ptr<float>(), first_index, ones.numel(), dropout);
  return ones.to(options);
}

Tensor dropout(const Tensor& x, kernels::Dropout dropout) {
  if (dropout.p == 0) return x;
  return DropoutFunction::apply(x, static_cast<int64_t>(dropout.key), static_cast<double>(dropout.p));
}

}  // namespace lathe::nn
