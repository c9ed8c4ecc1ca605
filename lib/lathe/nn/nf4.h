#pragma once

#include "lathe/nn/linear.h"
#include "lathe/quant/blockwise.h"

namespace lathe::nn {

/// Options of NF4Linear.
struct NF4LinearOptions {
  /// The code book. Default: NF4
  TORCH_ARG(quant::QuantType, type) = quant::QuantType::NF4;
  /// Elements that share a scale: 32, 64, ..., 4096. Default: 64
  TORCH_ARG(int64_t, blocksize) = 64;
  /// Quantise the scales too: 0.516 instead of 0.5625 bytes per weight at blocks of 64. Default: false
  TORCH_ARG(bool, double_quant) = false;
  /// The type of the products; float32 means: the type of x. Default: float32
  TORCH_ARG(at::ScalarType, compute) = at::kFloat;
};

/// A frozen linear map y = x Ŵᵀ + b whose weight is stored in four bits (NF4 or FP4), with
///     Ŵ = code · absmax, rounded once to the type of the computation: the same Ŵ forward and backward.
/// Source: Dettmers et al. 2023, "QLoRA", section 3 (arXiv:2305.14314); stored as bitsandbytes stores it.
///
/// State   weight uint8 [⌈out_features · in_features / 2⌉, 1]   buffer: blocks run over the flat weight
///         absmax float32 [num_blocks], or uint8 when the scales are quantised too
///         quant_map float32 [16]
///         nested_absmax float32 [⌈num_blocks / 256⌉], nested_quant_map float32 [256]   with double quantisation
///         bias [out_features] or absent, a parameter
///         The buffers are empty until quantize() or set_packed() fills them.
/// Shape   x [..., in_features] -> y [..., out_features]; y has the dtype of x
/// Throws  c10::ValueError  on construction unless blocksize is allowed
///                          in quantize() for another shape or type, and for a value that is not finite
///                          in forward() unless x.size(-1) == in_features
/// Holds   the weight is decoded into buffers of the size of a cache: never as a whole, except by dense_weight(). The
///         backward pass keeps nothing but the layer itself. No call but quantize() and set_packed() changes the state.
class NF4LinearImpl : public LinearBase {
 public:
  NF4LinearImpl(int64_t in_features, int64_t out_features, bool bias, NF4LinearOptions options = {});

  /// Fills the buffers from a dense weight [out_features, in_features] of float32, bfloat16 or float16. `name` is what
  /// an error calls the weight.
  void quantize(const Tensor& dense, const std::string& name = "weight");

  /// The buffers of a stored weight. The nested ones are undefined without double quantisation.
  struct Stored {
    Tensor weight, absmax, quant_map, nested_absmax, nested_quant_map;
    float nested_offset = 0;
    at::ScalarType dtype = at::kFloat;  ///< of the weight before
  };
  void set_packed(const Stored& stored);
  const Stored& stored() const { return stored_; }

  Tensor product(const Tensor& x) override;
  const Tensor& bias() const override { return bias_; }
  void frozen_product(const Tensor& x, Tensor out) const override;
  void frozen_input_gradient(const Tensor& grad, Tensor dx, bool accumulate) const override;
  /// Ŵ in float32, a new tensor.
  Tensor dense_weight() const override;
  /// out [count, in_features] = the rows [first, first + count) of Ŵ, rounded to out's float32, bfloat16 or float16.
  void decode(int64_t first, int64_t count, const Tensor& out) const;
  void pretty_print(std::ostream& stream) const override;

  NF4LinearOptions options;
  Tensor weight, absmax, quant_map, nested_absmax, nested_quant_map;

 private:
  quant::Packed view() const;
  at::ScalarType compute_type(const Tensor& x) const;
  void few_rows(const Tensor& x, Tensor out) const;
  // Ŵ of the rows or the columns [first, first + count), or Ŵᵀ of the rows, in the type of the computation.
  Tensor row_panel(int64_t first, int64_t count, at::ScalarType compute) const;
  Tensor transposed_panel(int64_t first, int64_t count, at::ScalarType compute) const;
  Tensor column_panel(int64_t first, int64_t count, at::ScalarType compute) const;

  Tensor bias_;
  Stored stored_;  // shares the buffers' memory
};
TORCH_MODULE(NF4Linear);

}  // namespace lathe::nn
