#pragma once

#include <ATen/core/TensorBody.h>

#include "lathe/nn/kernels.h"
#include "lathe/nn/moe_experts.h"

namespace lathe::nn {

/// What lies between an expert's two products, on the rows of one expert: y = scale · dropout(act(h + bias)).
/// float32 tensors on the CPU take the fused kernels, others LibTorch's operators. Outside autograd.
///
/// Shape   h [n, 2F] for SwiGLU, else [n, F]; bias [F] or undefined; scale [n] -> y [n, F]
struct ExpertActivationPass {
  ExpertActivation kind = ExpertActivation::SwiGLU;
  kernels::Dropout dropout{};

  /// first_index: the place of y's first element in the mask.
  void forward(const Tensor& h, const Tensor& bias, const Tensor& scale, int64_t first_index, Tensor y) const;

  struct Gradients {
    Tensor y;       ///< again
    Tensor dscale;  ///< [n]
  };
  /// dy [n, F] is overwritten; dh, of the shape of h, is filled and may be h.
  Gradients backward(const Tensor& h, const Tensor& bias, const Tensor& scale, int64_t first_index, Tensor dy,
                     Tensor dh) const;
};

/// silu(gate) · up of h = [gate | up], differentiable; keeps h.
/// Source: Shazeer 2020, "GLU variants improve transformer" (arXiv:2002.05202).
///
/// Shape   h [N, 2F] -> [N, F]
Tensor swiglu(const Tensor& h);

}  // namespace lathe::nn
