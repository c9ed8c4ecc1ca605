#include "lathe/nn/moe_activation.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lathe/nn/dropout.h"
#include "lathe/nn/moe_kernels.h"

namespace lathe::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kActivationRowsPerTask = 16;

const float* bias_data(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr; }

// One pass over rows, in parallel: fn(first row, number of rows).
template <typename F>
void over_rows(int64_t rows, const F& fn) {
  at::parallel_for(0, rows, kActivationRowsPerTask, [&](int64_t begin, int64_t end) { fn(begin, end - begin); });
}

void run_swiglu(const Tensor& h, const Tensor& scale, const Tensor& y) {
  const int64_t columns = y.size(1);
  over_rows(h.size(0), [&](int64_t at, int64_t rows) {
    kernels::swiglu_forward(h.const_data_ptr<float>() + at * 2 * columns,
                            scale.defined() ? scale.const_data_ptr<float>() + at : nullptr,
                            y.data_ptr<float>() + at * columns, rows, columns);
  });
}

// y and dscale may be undefined; y may be dy.
void run_swiglu_backward(const Tensor& h, const Tensor& scale, const Tensor& dy, const Tensor& dh, const Tensor& y,
                         const Tensor& dscale) {
  const int64_t columns = dy.size(1);
  over_rows(h.size(0), [&](int64_t at, int64_t rows) {
    kernels::swiglu_backward(h.const_data_ptr<float>() + at * 2 * columns,
                             scale.defined() ? scale.const_data_ptr<float>() + at : nullptr,
                             dy.const_data_ptr<float>() + at * columns, dh.data_ptr<float>() + at * 2 * columns,
                             y.defined() ? y.data_ptr<float>() + at * columns : nullptr,
                             dscale.defined() ? dscale.data_ptr<float>() + at : nullptr, rows, columns);
  });
}

// y = act(h + bias) and, where wanted, its derivative.
void run_expert_gelu(const Tensor& h, const Tensor& bias, bool tanh, const Tensor& y, const Tensor& derivative) {
  const int64_t columns = h.size(1);
  const auto kernel = tanh ? kernels::gelu_tanh_forward : kernels::gelu_forward;
  over_rows(h.size(0), [&](int64_t at, int64_t rows) {
    kernel(h.const_data_ptr<float>() + at * columns, bias_data(bias), y.data_ptr<float>() + at * columns,
           derivative.data_ptr<float>() + at * columns, rows, columns);
  });
}

void drop_in_place(const Tensor& y, kernels::Dropout dropout, int64_t first_index) {
  if (dropout.p == 0) return;
  if (!uses_kernels(y)) {
    y.mul_(dropout_factors(y.sizes(), dropout, first_index, y.options()));
    return;
  }
  const int64_t columns = y.size(1);
  over_rows(y.size(0), [&](int64_t at, int64_t rows) {
    float* data = y.data_ptr<float>() + at * columns;
    kernels::dropout(data, data, first_index + at * columns, rows * columns, dropout);
  });
}

Tensor shifted(const Tensor& h, const Tensor& bias) { return bias.defined() ? h + bias : h; }

const char* gelu_form(ExpertActivation kind) { return kind == ExpertActivation::GeluTanh ? "tanh" : "none"; }

struct FusedSwiglu : torch::autograd::Function<FusedSwiglu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& h) {
    Tensor y = at::empty({h.size(0), h.size(1) / 2}, h.options());
    run_swiglu(h, {}, y);
    ctx->save_for_backward({h});
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor h = ctx->get_saved_variables()[0];
    Tensor dh = at::empty(h.sizes(), h.options());
    run_swiglu_backward(h, {}, grads[0].contiguous(), dh, {}, {});
    return {dh};
  }
};

}  // namespace

void ExpertActivationPass::forward(const Tensor& h, const Tensor& bias, const Tensor& scale, int64_t first_index,
                                   Tensor y) const {
  const bool gated = kind == ExpertActivation::SwiGLU;
  if (!uses_kernels(h)) {
    if (gated) {
      const int64_t columns = h.size(1) / 2;
      at::mul_out(y, at::silu(h.narrow(1, 0, columns)), h.narrow(1, columns, columns));
    } else {
      at::gelu_out(y, shifted(h, bias), gelu_form(kind));
    }
    y.mul_(scale.unsqueeze(1));
  } else if (gated) {
    run_swiglu(h, scale, y);
  } else {
    run_expert_gelu(h, bias, kind == ExpertActivation::GeluTanh, y, at::empty(h.sizes(), h.options()));
    y.mul_(scale.unsqueeze(1));
  }
  drop_in_place(y, dropout, first_index);
}

ExpertActivationPass::Gradients ExpertActivationPass::backward(const Tensor& h, const Tensor& bias, const Tensor& scale,
                                                               int64_t first_index, Tensor dy, Tensor dh) const {
  const bool gated = kind == ExpertActivation::SwiGLU;
  drop_in_place(dy, dropout, first_index);
  Gradients result;
  if (!uses_kernels(h)) {
    const Tensor v = shifted(h, bias), scaled = dy * scale.unsqueeze(1);
    if (gated) {
      const int64_t columns = h.size(1) / 2;
      const Tensor gate = h.narrow(1, 0, columns), up = h.narrow(1, columns, columns), sigmoid = at::sigmoid(gate);
      const Tensor slope = sigmoid * (1 + gate * (1 - sigmoid));
      result.y = gate * sigmoid * up;
      dh.copy_(at::cat({scaled * up * slope, scaled * gate * sigmoid}, 1));
    } else {
      result.y = at::gelu(v, gelu_form(kind));
      dh.copy_(at::gelu_backward(scaled, v, gelu_form(kind)));
    }
    result.dscale = (result.y * dy).sum(1);
    result.y.mul_(scale.unsqueeze(1));
  } else if (gated) {
    result.dscale = at::empty({h.size(0)}, h.options());
    result.y = dy;
    run_swiglu_backward(h, scale, dy, dh, result.y, result.dscale);
  } else {
    result.y = at::empty(h.sizes(), h.options());
    run_expert_gelu(h, bias, kind == ExpertActivation::GeluTanh, result.y, dh);
    dh.mul_(dy).mul_(scale.unsqueeze(1));
    result.dscale = dy.mul_(result.y).sum(1);
    result.y.mul_(scale.unsqueeze(1));
  }
  drop_in_place(result.y, dropout, first_index);
  return result;
}

Tensor swiglu(const Tensor& h) {
  if (uses_kernels(h) && h.dim() == 2 && h.is_contiguous()) return FusedSwiglu::apply(h);
  const int64_t columns = h.size(-1) / 2;
  return at::silu(h.narrow(-1, 0, columns)) * h.narrow(-1, columns, columns);
}

}  // namespace lathe::nn
