#pragma once

#include <torch/arg.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lathe/nn/dropout.h"
#include "lathe/nn/moe_router.h"

namespace lathe::nn {

// T tokens, D model width, F hidden width, E experts, A assignments, R rank

/// Assignments sorted by expert, stably: row r of the sorted list is assignment order_A[r], a use of token token_A[r].
struct ExpertGroups {
  Tensor order_A;                ///< int64
  Tensor token_A;                ///< int64
  std::vector<int64_t> offsets;  ///< [E + 1]; expert e owns rows [offsets[e], offsets[e + 1])

  /// Throws c10::ValueError for a token or an expert out of range.
  static ExpertGroups of(const Routing& routing);
  int64_t num_rows() const { return offsets.back(); }
};

/// A bank of experts: y[t] = Σ over assignments a of token t, in the order of their experts, of gate_a expert_a(x[t]).
///
/// Shape   x [T, D], routing of T tokens -> [T, D]; a token without assignments gets zeros
class ExpertBankBase : public torch::nn::Module {
 public:
  using torch::nn::Module::Module;
  virtual int64_t num_experts() const = 0;
  virtual int64_t in_features() const = 0;
  /// `dropout` acts on the experts' hidden activations, by their place in the sorted list.
  virtual Tensor forward(const Tensor& x_TD, const Routing& routing, kernels::Dropout dropout) = 0;
};

enum class ExpertActivation {
  SwiGLU,    ///< down(silu(gate) · up)
  Gelu,      ///< down(gelu(up)), x Φ(x)
  GeluTanh,  ///< the same by tanh
};

/// Options of ExpertBank.
struct ExpertBankOptions {
  ExpertBankOptions(int64_t num_experts, int64_t in_features, int64_t hidden_features)
      : num_experts_(num_experts), in_features_(in_features), hidden_features_(hidden_features) {}
  TORCH_ARG(int64_t, num_experts);
  TORCH_ARG(int64_t, in_features);
  TORCH_ARG(int64_t, hidden_features);
  /// Default: SwiGLU
  TORCH_ARG(ExpertActivation, activation) = ExpertActivation::SwiGLU;
  /// Biases of both products. Not with SwiGLU. Default: false
  TORCH_ARG(bool, bias) = false;
};

/// A trainable low-rank update of some rows of one projection, for every expert: W_e[rows] += scaling B_e A_e.
struct ExpertLoRAOptions {
  std::string projection;  ///< gate_up_proj, gate_proj, up_proj (its halves) or down_proj
  int64_t rank = 8;
  double scaling = 2;
};

/// Experts as one tensor per projection. Work is done expert by expert on contiguous rows, with one expert's buffers at
/// a time; backward by hand keeps x, the gates and the first product, and computes the rest again.
///
/// State   gate_up_proj [E, 2F, D]  SwiGLU: rows 0 to F - 1 gate, the others up
///         up_proj [E, F, D], up_proj_bias [E, F]  otherwise; biases optional
///         down_proj [E, D, F], down_proj_bias [E, D]
///         <projection>_lora_A [E, R, in], <projection>_lora_B [E, rows, R]  by add_lora()
///         hollow until loaded; frozen weights may be bfloat16, each expert's being converted when it is used
/// Throws  c10::ValueError  on construction unless all sizes are at least 1; for SwiGLU with biases
///                          in forward() unless x is [T, D] and the routing of T tokens
/// Holds   a token's sum is taken in the order of the experts: no atomics, no dependence on how rows are shared out.
class ExpertBankImpl : public ExpertBankBase {
 public:
  explicit ExpertBankImpl(ExpertBankOptions options);

  int64_t num_experts() const override { return options.num_experts(); }
  int64_t in_features() const override { return options.in_features(); }
  Tensor forward(const Tensor& x_TD, const Routing& routing, kernels::Dropout dropout = {}) override;

  /// Draws the weights from counters: U(±1/√in), as torch::nn::Linear does; biases likewise.
  void initialise(uint64_t key);
  /// Freezes the projections and adds an update: A kaiming-uniform from counters, B zero.
  /// Throws c10::ValueError for a projection that the bank lacks or that is adapted already, and for rank < 1.
  void add_lora(const ExpertLoRAOptions& lora, uint64_t key);

  struct LoRA {
    std::string projection;
    bool of_down = false;
    int64_t first_row = 0, num_rows = 0, rank = 0;
    double scaling = 1;
    Tensor A, B;
  };
  const std::vector<LoRA>& loras() const { return loras_; }

  ExpertBankOptions options;
  Tensor up_weight;  ///< gate_up_proj or up_proj
  Tensor down_weight;
  Tensor up_bias, down_bias;  ///< or undefined

 private:
  std::vector<LoRA> loras_;
};
TORCH_MODULE(ExpertBank);

}  // namespace lathe::nn
