#pragma once

#include <torch/nn/module.h>

#include "lathe/nn/dropout.h"
#include "lathe/nn/linear.h"

namespace lathe::nn {

/// A table of vectors: y = weight[index].
///
/// State   weight [num_embeddings, embedding_dim], hollow until loaded
/// Shape   indices [...] int64 -> [..., embedding_dim]
class EmbeddingImpl : public torch::nn::Module {
 public:
  EmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim);
  /// float32 (float64 for a float64 weight), whatever the storage.
  Tensor forward(const Tensor& indices) const;
  void set_storage(at::ScalarType storage) { storage_ = storage; }

  Tensor weight;

 private:
  at::ScalarType storage_ = at::kFloat;
};
TORCH_MODULE(Embedding);

/// Normalisation over the last dimension: y = (x - mean) / sqrt(var + eps) · weight + bias, var biased.
/// Source: Ba et al. 2016, "Layer normalization" (arXiv:1607.06450).
///
/// State   weight [columns], bias [columns], hollow until loaded
class LayerNormImpl : public torch::nn::Module {
 public:
  LayerNormImpl(int64_t columns, double eps);
  Tensor forward(const Tensor& x) const;
  double eps;
  Tensor weight, bias;
};
TORCH_MODULE(LayerNorm);

enum class Gelu {
  Erf,   ///< x Φ(x)
  Tanh,  ///< its approximation by tanh; "gelu_new" and "gelu_pytorch_tanh" in checkpoints
};

/// gelu(linear(x)) as one product and one fused pass that keeps only the derivative (the product itself, where
/// checkpoint() keeps products only).
/// Source: Hendrycks and Gimpel 2016, "Gaussian error linear units" (arXiv:1606.08415).
Tensor linear_gelu(const Tensor& x, LinearBase& linear, Gelu kind);

/// gelu(h) of a product that nobody else holds, whatever its shape: likewise one fused pass that may overwrite h.
Tensor gelu_of_product(const Tensor& h, Gelu kind);
/// The same bits outside autograd; h stays.
Tensor gelu_value(const Tensor& h, Gelu kind);

/// norm(dropout(linear(x)) + residual): the end of a post-norm sublayer, as one product and one fused pass.
///
/// Shape   x [N, in_features], residual [N, out_features] -> [N, out_features]
Tensor linear_residual_norm(const Tensor& x, LinearBase& linear, const Tensor& residual, const LayerNormImpl& norm,
                            kernels::Dropout dropout);

/// Σ over rows of the cross-entropy between softmax(logits) and the labels, smoothed: (1 - s) on the label, s / C on
/// every class.
///
/// Shape   logits [N, C], labels [N] int64 -> scalar float32 (float64 for float64 logits)
Tensor cross_entropy_sum(const Tensor& logits, const Tensor& labels, double label_smoothing = 0);

}  // namespace lathe::nn
