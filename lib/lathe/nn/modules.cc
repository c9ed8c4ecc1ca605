#include "lathe/nn/modules.h"

#include <ATen/Parallel.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "lathe/nn/checkpoint.h"

namespace lathe::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kRowsPerTask = 16;

const float* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

std::optional<Tensor> bias_of(const LinearBase& linear) {
  return linear.bias().defined() ? std::optional<Tensor>(linear.bias()) : std::nullopt;
}

using GeluKernel = decltype(&kernels::gelu_forward);

GeluKernel gelu_kernel(bool tanh) { return tanh ? kernels::gelu_tanh_forward : kernels::gelu_forward; }

// derivative may be undefined, or h.
void run_gelu(const Tensor& h, const std::optional<Tensor>& bias, bool tanh, const Tensor& y,
              const Tensor& derivative) {
  RECORD_FUNCTION("lathe::gelu", (std::vector<c10::IValue>{h, y, derivative}));
  const int64_t columns = h.size(-1);
  at::parallel_for(0, h.numel() / columns, kRowsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<float> unused(derivative.defined() ? 0 : static_cast<size_t>(kRowsPerTask * columns));
    for (int64_t row = begin; row < end; row += kRowsPerTask) {
      const int64_t at = row * columns;
      gelu_kernel(tanh)(h.const_data_ptr<float>() + at, data_or_null(bias), y.data_ptr<float>() + at,
                        derivative.defined() ? derivative.data_ptr<float>() + at : unused.data(),
                        std::min(kRowsPerTask, end - row), columns);
    }
  });
}

// dh = grad times the derivative at h + bias, a few rows at a time; dh may be grad.
void run_gelu_backward(const Tensor& h, const std::optional<Tensor>& bias, bool tanh, const Tensor& grad,
                       const Tensor& dh) {
  RECORD_FUNCTION("lathe::gelu_backward", (std::vector<c10::IValue>{grad, h, dh}));
  const int64_t columns = h.size(-1);
  at::parallel_for(0, h.numel() / columns, kRowsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<float> unused(static_cast<size_t>(kRowsPerTask * columns)), slope(unused.size());
    for (int64_t row = begin; row < end; row += kRowsPerTask) {
      const int64_t at = row * columns, rows = std::min(kRowsPerTask, end - row);
      gelu_kernel(tanh)(h.const_data_ptr<float>() + at, data_or_null(bias), unused.data(), slope.data(), rows, columns);
      kernels::multiply(grad.const_data_ptr<float>() + at, slope.data(), dh.data_ptr<float>() + at, rows * columns);
    }
  });
}

// dh = grad · derivative; dh may be grad.
void times_derivative(const Tensor& grad, const Tensor& derivative, const Tensor& dh) {
  RECORD_FUNCTION("lathe::gelu_backward", (std::vector<c10::IValue>{grad, derivative, dh}));
  at::parallel_for(0, grad.numel(), kRowsPerTask * 1024, [&](int64_t begin, int64_t end) {
    kernels::multiply(grad.const_data_ptr<float>() + begin, derivative.const_data_ptr<float>() + begin,
                      dh.data_ptr<float>() + begin, end - begin);
  });
}

// Whether a gradient's memory may be written over: its two handles are the engine's and the one given to backward().
bool held_alone(const Tensor& grad) {
  return grad.is_contiguous() && grad.use_count() == 2 && grad.storage().use_count() == 1;
}

// h [..., C] is a product without its bias that nobody else holds: the derivative is written over it, unless only
// products are kept.
struct FusedGelu : torch::autograd::Function<FusedGelu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& h, const std::optional<Tensor>& bias, bool tanh) {
    Tensor y = at::empty(h.sizes(), h.options());
    const bool keeps_product = keeps_products_only();
    run_gelu(h, bias, tanh, y, keeps_product ? Tensor() : h);
    if (keeps_product) {
      recompute_on_demand(y, [h = h.detach(), bias, tanh] {
        Tensor again = at::empty(h.sizes(), h.options());
        run_gelu(h, bias, tanh, again, Tensor());
        return again;
      });
    }
    variable_list saved = {h};
    if (keeps_product && bias) saved.push_back(*bias);
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["bias"] = bias.has_value();
    ctx->saved_data["tanh"] = tanh;
    ctx->saved_data["keeps_product"] = keeps_product;
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const bool has_bias = ctx->saved_data["bias"].toBool();
    const bool ours = held_alone(grads[0]) || !grads[0].is_contiguous();  // a copy is
    const Tensor grad = grads[0].contiguous();
    const Tensor dh = ours ? grad : at::empty(grad.sizes(), grad.options());
    if (ctx->saved_data["keeps_product"].toBool()) {
      run_gelu_backward(saved[0], has_bias ? std::optional<Tensor>(saved[1]) : std::nullopt,
                        ctx->saved_data["tanh"].toBool(), grad, dh);
    } else {
      times_derivative(grad, saved[0], dh);
    }
    const bool bias_trains = has_bias && ctx->needs_input_grad(1);
    return {dh, bias_trains ? dh.sum(0) : Tensor(), Tensor()};
  }
};

const char* gelu_form(Gelu kind) { return kind == Gelu::Tanh ? "tanh" : "none"; }

Tensor scaled_and_shifted(const Tensor& xhat, const Tensor& gamma, const Tensor& beta) {
  Tensor y = at::empty(xhat.sizes(), xhat.options());
  RECORD_FUNCTION("lathe::scale_shift", (std::vector<c10::IValue>{xhat, y}));
  const int64_t columns = xhat.size(1);
  at::parallel_for(0, xhat.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels::scale_shift(xhat.const_data_ptr<float>() + begin * columns, gamma.const_data_ptr<float>(),
                         beta.const_data_ptr<float>(), y.data_ptr<float>() + begin * columns, end - begin, columns);
  });
  return y;
}

// h [N, C] as above: the normalised rows are written over it.
struct FusedResidualNorm : torch::autograd::Function<FusedResidualNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& h, const Tensor& residual, const Tensor& gamma,
                        const Tensor& beta, const std::optional<Tensor>& bias, double eps, int64_t key, double rate) {
    const kernels::Dropout dropout{static_cast<uint64_t>(key), static_cast<float>(rate)};
    const int64_t rows = h.size(0), columns = h.size(1);
    Tensor y = at::empty(h.sizes(), h.options());
    Tensor rstd = at::empty({rows}, h.options());
    const Tensor added = residual.contiguous();
    RECORD_FUNCTION("lathe::residual_layer_norm", (std::vector<c10::IValue>{h, h, added, y}));
    at::parallel_for(0, rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
      const int64_t at = begin * columns;
      kernels::residual_layer_norm_forward(
          h.data_ptr<float>() + at, data_or_null(bias), added.const_data_ptr<float>() + at,
          gamma.const_data_ptr<float>(), beta.const_data_ptr<float>(), y.data_ptr<float>() + at,
          rstd.data_ptr<float>() + begin, begin, end - begin, columns, static_cast<float>(eps), dropout);
    });
    if (keeps_products_only()) {
      recompute_on_demand(y, [xhat = h.detach(), gamma = gamma.detach(), beta = beta.detach()] {
        return scaled_and_shifted(xhat, gamma, beta);
      });
    }
    ctx->save_for_backward({h, rstd, gamma});
    ctx->saved_data["bias"] = bias.has_value();
    ctx->saved_data["key"] = key;
    ctx->saved_data["rate"] = rate;
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &xhat = saved[0], &rstd = saved[1], &gamma = saved[2];
    const kernels::Dropout dropout{static_cast<uint64_t>(ctx->saved_data["key"].toInt()),
                                   static_cast<float>(ctx->saved_data["rate"].toDouble())};
    const Tensor dy = grads[0].contiguous();
    const int64_t rows = dy.size(0), columns = dy.size(1);
    Tensor dresidual = at::empty(dy.sizes(), dy.options());
    Tensor dh = dropout.p > 0 ? at::empty(dy.sizes(), dy.options()) : dresidual;
    RECORD_FUNCTION("lathe::residual_layer_norm_backward", (std::vector<c10::IValue>{dy, xhat, dresidual, dh}));
    at::parallel_for(0, rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
      const int64_t at = begin * columns;
      kernels::residual_layer_norm_backward(dy.const_data_ptr<float>() + at, xhat.const_data_ptr<float>() + at,
                                            rstd.const_data_ptr<float>() + begin, gamma.const_data_ptr<float>(),
                                            dresidual.data_ptr<float>() + at, dh.data_ptr<float>() + at, begin,
                                            end - begin, columns, dropout);
    });
    const Tensor dgamma = ctx->needs_input_grad(2) ? (dy * xhat).sum(0) : Tensor();
    const Tensor dbeta = ctx->needs_input_grad(3) ? dy.sum(0) : Tensor();
    const bool bias_trains = ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(4);
    return {dh, dresidual, dgamma, dbeta, bias_trains ? dh.sum(0) : Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

EmbeddingImpl::EmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim) : torch::nn::Module("Embedding") {
  weight = register_parameter("weight", hollow({num_embeddings, embedding_dim}));
}

Tensor EmbeddingImpl::forward(const Tensor& indices) const {
  const Tensor rows = at::embedding(weight, indices);
  if (rows.scalar_type() == at::kBFloat16) return rows.to(at::kFloat);
  if (storage_ == at::kFloat) return rows;
  // The rounded value with the gradient of the master; both steps are exact.
  return rows + (rows.to(storage_).to(rows.scalar_type()) - rows).detach();
}

LayerNormImpl::LayerNormImpl(int64_t columns, double eps_) : torch::nn::Module("LayerNorm"), eps(eps_) {
  weight = register_parameter("weight", hollow({columns}));
  bias = register_parameter("bias", hollow({columns}));
}

Tensor LayerNormImpl::forward(const Tensor& x) const { return at::layer_norm(x, weight.sizes(), weight, bias, eps); }

Tensor linear_gelu(const Tensor& x, LinearBase& linear, Gelu kind) {
  const Tensor h = linear.product(x);
  if (uses_kernels(h) && h.dim() == 2) return FusedGelu::apply(h, bias_of(linear), kind == Gelu::Tanh);
  return gelu_of_product(linear.bias().defined() ? h + linear.bias() : h, kind);
}

Tensor gelu_of_product(const Tensor& h, Gelu kind) {
  if (uses_kernels(h) && h.is_contiguous()) return FusedGelu::apply(h, std::nullopt, kind == Gelu::Tanh);
  Tensor y = at::gelu(h, gelu_form(kind));
  recompute_on_demand(y, [h = h.detach(), kind] { return at::gelu(h, gelu_form(kind)); });
  return y;
}

Tensor gelu_value(const Tensor& h, Gelu kind) {
  if (!uses_kernels(h)) return at::gelu(h, gelu_form(kind));
  Tensor y = at::empty(h.sizes(), h.options());
  run_gelu(h, std::nullopt, kind == Gelu::Tanh, y, Tensor());
  return y;
}

Tensor linear_residual_norm(const Tensor& x, LinearBase& linear, const Tensor& residual, const LayerNormImpl& norm,
                            kernels::Dropout mask) {
  const Tensor h = linear.product(x);
  if (uses_kernels(h) && h.dim() == 2) {
    return FusedResidualNorm::apply(h, residual, norm.weight, norm.bias, bias_of(linear), norm.eps,
                                    static_cast<int64_t>(mask.key), static_cast<double>(mask.p));
  }
  const Tensor sum = dropout(linear.bias().defined() ? h + linear.bias() : h, mask) + residual;
  Tensor y = norm.forward(sum);
  recompute_on_demand(y, [sum = sum.detach(), weight = norm.weight.detach(), bias = norm.bias.detach(),
                          eps = norm.eps] { return at::layer_norm(sum, weight.sizes(), weight, bias, eps); });
  return y;
}

Tensor cross_entropy_sum(const Tensor& logits, const Tensor& labels, double label_smoothing) {
  const Tensor computed = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
  const Tensor log_probabilities = at::log_softmax(computed, -1);
  const Tensor on_label = log_probabilities.gather(1, labels.unsqueeze(1)).sum();
  if (label_smoothing == 0) return -on_label;
  return -((1 - label_smoothing) * on_label +
           label_smoothing / static_cast<double>(logits.size(1)) * log_probabilities.sum());
}

}  // namespace lathe::nn
