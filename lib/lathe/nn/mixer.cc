#include "lathe/nn/mixer.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/init.h>

#include <functional>
#include <optional>
#include <utility>

#include "lathe/nn/checkpoint.h"
#include "lathe/nn/gemm.h"

namespace lathe::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// B samples, S tokens, C channels, D hidden width, N = B S rows; K in_features and M out_features of a token map

const float* sample(const Tensor& x_BKC, int64_t b) {
  return x_BKC.const_data_ptr<float>() + b * x_BKC.size(1) * x_BKC.size(2);
}

float* sample_of(const Tensor& x_BKC, int64_t b) { return x_BKC.data_ptr<float>() + b * x_BKC.size(1) * x_BKC.size(2); }

SgemmOperand whole(const float* data, int64_t columns, bool transposed = false) { return {data, columns, transposed}; }

// What a product along the sequence is added to: bias 1ᵀ + residual[b].
Tensor start_of_sum(const Tensor& like_BKC, int64_t M, const std::optional<Tensor>& bias_M,
                    const std::optional<Tensor>& residual_BMC) {
  const at::NoGradGuard no_grad;
  Tensor y = residual_BMC ? residual_BMC->clone(at::MemoryFormat::Contiguous)
                          : at::zeros({like_BKC.size(0), M, like_BKC.size(2)}, like_BKC.options());
  return bias_M ? y.add_(bias_M->unsqueeze(1)) : y;
}

// y[b] = W x[b] + bias 1ᵀ + residual[b]: a linear map along the sequence, without a transpose. `sum` is the start of y
// and becomes it. Saves x where W trains.
struct TokenMap : torch::autograd::Function<TokenMap> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_BKC, const Tensor& weight_MK,
                        const std::optional<Tensor>& bias_M, const std::optional<Tensor>& residual_BMC,
                        std::reference_wrapper<Tensor> sum) {
    const int64_t B = x_BKC.size(0), K = weight_MK.size(1), M = weight_MK.size(0), C = x_BKC.size(2);
    Tensor& y = sum.get();
    at::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        sgemm({M, C, K, 1, 1}, whole(weight_MK.const_data_ptr<float>(), K), whole(sample(x_BKC, b), C), sample_of(y, b),
              C);
    });
    ctx->save_for_backward({weight_MK, weight_MK.requires_grad() ? x_BKC : Tensor()});
    ctx->saved_data["bias"] = bias_M.has_value();
    ctx->saved_data["residual"] = residual_BMC.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &weight_MK = saved[0], &x_BKC = saved[1];
    const Tensor dy_BMC = grads[0].contiguous();
    const int64_t B = dy_BMC.size(0), K = weight_MK.size(1), M = weight_MK.size(0), C = dy_BMC.size(2);
    Tensor dx_BKC, dweight_MK, dbias_M;
    if (ctx->needs_input_grad(0)) {
      dx_BKC = at::empty({B, K, C}, dy_BMC.options());
      at::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
          sgemm({K, C, M, 1, 0}, whole(weight_MK.const_data_ptr<float>(), K, true), whole(sample(dy_BMC, b), C),
                sample_of(dx_BKC, b), C);
      });
    }
    if (ctx->needs_input_grad(1)) {
      dweight_MK = at::zeros({M, K}, dy_BMC.options());
      for (int64_t b = 0; b < B; ++b)
        sgemm({M, K, C, 1, 1}, whole(sample(dy_BMC, b), C), whole(sample(x_BKC, b), C, true),
              dweight_MK.data_ptr<float>(), K);
    }
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) dbias_M = dy_BMC.sum({0, 2});
    return {dx_BKC, dweight_MK, dbias_M, ctx->saved_data["residual"].toBool() ? grads[0] : Tensor(), Tensor()};
  }
};

// linear(x[b]ᵀ)ᵀ + residual, where x = make() is like the given tensor. A dense float32 layer multiplies from the left;
// any other sees a transposed copy, which `again` makes anew where only products are kept.
Tensor map_tokens(const Tensor& like_BKC, const std::function<Tensor()>& make, LinearBase& linear,
                  const std::optional<Tensor>& residual, const std::function<Tensor()>& again) {
  auto* dense = dynamic_cast<LinearImpl*>(&linear);
  if (dense != nullptr && uses_kernels(like_BKC) && dense->is_plain(like_BKC)) {
    const auto bias = linear.bias().defined() ? std::optional<Tensor>(linear.bias()) : std::nullopt;
    // Before x, which goes: below what stays it would leave a hole in memory.
    Tensor sum = start_of_sum(like_BKC, dense->out_features(), bias, residual);
    return TokenMap::apply(make().contiguous(), dense->weight, bias, residual, std::ref(sum));
  }
  const Tensor x_BCK = make().transpose(1, 2).contiguous();
  recompute_on_demand(x_BCK, [again] { return again().transpose(1, 2).contiguous(); });
  const Tensor y_BMC = linear.forward(x_BCK).transpose(1, 2);
  return residual ? *residual + y_BMC : y_BMC.contiguous();  // as the residual lies
}

// The norm, and how to compute it again.
std::pair<Tensor, std::function<Tensor()>> normalised(const Tensor& x, const LayerNormImpl& norm) {
  Tensor y = norm.forward(x);
  if (!keeps_products_only()) return {y, nullptr};
  const auto again = [x = x.detach(), weight = norm.weight.detach(), bias = norm.bias.detach(), eps = norm.eps] {
    return at::layer_norm(x, weight.sizes(), weight, bias, eps);
  };
  recompute_on_demand(y, again);
  return {y, again};
}

Tensor mix_tokens(const Tensor& x_BSC, const LayerNormImpl& norm, MixerMlp& mlp, Gelu gelu) {
  const auto [normed_BSC, norm_again] = normalised(x_BSC, norm);
  const auto made = [normed_BSC] { return normed_BSC; };
  const Tensor h_BDC = map_tokens(normed_BSC, made, *mlp.fc1, std::nullopt, norm_again);
  // Plain, the derivative is written over h; where only products are kept, h stays.
  const auto gelu_again = [h = keeps_products_only() ? h_BDC.detach() : Tensor(), gelu] { return gelu_value(h, gelu); };
  const auto activated = [&] { return gelu_of_product(h_BDC, gelu); };
  return map_tokens(h_BDC, activated, *mlp.fc2, x_BSC, gelu_again);
}

}  // namespace

MixerMlp::MixerMlp(int64_t features, int64_t hidden_features)
    : SlottedModule("MixerMlp"),
      fc1(register_linear("fc1", Linear(features, hidden_features).ptr())),
      fc2(register_linear("fc2", Linear(hidden_features, features).ptr())) {}

MixerBlockImpl::MixerBlockImpl(MixerBlockOptions options_, std::shared_ptr<MoELayerImpl> experts)
    : torch::nn::Module("MixerBlock"), options(options_) {
  TORCH_CHECK_VALUE(options.eps() > 0, "MixerBlock: expected eps > 0, got ", options.eps());
  norm1 = register_module("norm1", LayerNorm(options.width(), options.eps()));
  mlp_tokens = register_module("mlp_tokens",
                               std::make_shared<MixerMlp>(options.sequence_length(), options.tokens_hidden_size()));
  norm2 = register_module("norm2", LayerNorm(options.width(), options.eps()));
  if (experts != nullptr) {
    moe = register_module("moe", std::move(experts));
  } else {
    mlp_channels =
        register_module("mlp_channels", std::make_shared<MixerMlp>(options.width(), options.channels_hidden_size()));
  }
}

void MixerBlockImpl::reset_parameters() {
  const at::NoGradGuard no_grad;
  for (const LayerNorm& norm : {norm1, norm2}) {
    norm->weight.set_data(at::ones(norm->weight.sizes()));
    norm->bias.set_data(at::zeros(norm->bias.sizes()));
  }
  for (MixerMlp* mlp : {mlp_tokens.get(), mlp_channels.get()}) {
    if (mlp == nullptr) continue;
    for (const auto& slot : mlp->slots()) {
      for (auto& parameter : slot.value()->module()->parameters()) {
        Tensor drawn = at::empty(parameter.sizes());
        parameter.set_data(drawn.dim() == 2 ? torch::nn::init::xavier_uniform_(drawn)
                                            : torch::nn::init::normal_(drawn, 0, 1e-6));
      }
    }
  }
}

Tensor MixerBlockImpl::forward(const Tensor& x, const Pass& pass, uint64_t layer) {
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(1) == options.sequence_length() && x.size(2) == options.width(),
                    "MixerBlock: expected x [B, ", options.sequence_length(), ", ", options.width(), "], got ",
                    x.sizes());
  const Gelu gelu = options.gelu();
  const Tensor u_BSC = mix_tokens(x, *norm1, *mlp_tokens, gelu);
  const auto rows_NC = [&] { return normalised(u_BSC, *norm2).first.view({-1, options.width()}); };
  if (moe != nullptr) return u_BSC + moe->forward(rows_NC(), pass, layer).view(u_BSC.sizes());
  const Tensor hidden_ND = linear_gelu(rows_NC(), *mlp_channels->fc1, gelu);  // the rows go before the next product
  Tensor y_NC = mlp_channels->fc2->product(hidden_ND);
  if (mlp_channels->fc2->bias().defined()) y_NC = y_NC.add_(mlp_channels->fc2->bias());
  return y_NC.add_(u_BSC.reshape(y_NC.sizes())).view(u_BSC.sizes());  // in place on no view: that would copy gradients
}

void MixerBlockImpl::pretty_print(std::ostream& stream) const {
  stream << "lathe::nn::MixerBlock(sequence_length=" << options.sequence_length() << ", width=" << options.width()
         << ", tokens_hidden_size=" << options.tokens_hidden_size()
         << ", channels_hidden_size=" << options.channels_hidden_size()
         << ", gelu=" << (options.gelu() == Gelu::Tanh ? "tanh" : "erf") << ", eps=" << options.eps() << ")";
}

}  // namespace lathe::nn
