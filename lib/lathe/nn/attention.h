#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "lathe/nn/kernels.h"

namespace lathe::nn {

using at::Tensor;

/// Where each sample's rows lie in a tensor that holds the rows of a batch one after another, without padding.
/// offsets has one entry more than there are samples; sample b owns rows [offsets[b], offsets[b + 1]).
using RowOffsets = std::shared_ptr<const std::vector<int64_t>>;

struct AttentionOptions {
  int64_t num_heads = 1;
  kernels::Dropout dropout = {};  ///< on the probabilities
  /// Whether anybody reads the gradient of the keys; false leaves that part of the gradient zero and saves its product.
  bool key_gradient = true;
};

/// Bidirectional multi-head attention within each sample, scores scaled by 1 / sqrt(head width).
/// Source: Vaswani et al. 2017, "Attention is all you need", eq. 1; the backward that recomputes the scores: Dao et al.
/// 2022, "FlashAttention".
///
/// Shape   qkv [N, 3 W], the queries, keys and values of the same N rows side by side -> [N, W]
/// Throws  c10::ValueError unless W divides by num_heads and the offsets cover the rows
Tensor self_attention(const Tensor& qkv, const RowOffsets& rows, const AttentionOptions& options);

/// The same with the queries of other rows: sample b's queries attend to sample b's keys.
///
/// Shape   q [M, W], kv [N, 2 W] -> [M, W]
Tensor cross_attention(const Tensor& q, const RowOffsets& query_rows, const Tensor& kv, const RowOffsets& key_rows,
                       const AttentionOptions& options);

}  // namespace lathe::nn
