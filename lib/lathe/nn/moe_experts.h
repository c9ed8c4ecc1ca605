#pragma once

#include <torch/arg.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lathe/nn/dropout.h"
#include "lathe/nn/lora.h"
#include "lathe/nn/moe_router.h"
#include "lathe/nn/nf4.h"

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
  /// Of the fullest expert.
  int64_t most_rows() const;
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

/// What an expert's linear layers are called where they are adapted one by one.
struct ExpertLinearNames {
  std::string gate = "gate_proj", up = "up_proj", down = "down_proj";
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
  /// Default: gate_proj, up_proj, down_proj
  TORCH_ARG(ExpertLinearNames, linear_names) = {};
};

/// A trainable low-rank update of one projection: W[rows] += scaling B A.
struct ExpertLoRAOptions {
  std::string projection;  ///< gate_up_proj, gate_proj, up_proj (its halves) or down_proj; of one expert, linear_names
  int64_t rank = 8;
  double scaling = 2;
  double dropout = 0;  ///< of A's input in training, in [0, 1)
};

struct BankPass;

/// Experts as one tensor per projection. Work is done expert by expert on contiguous rows, with one expert's buffers at
/// a time; backward by hand keeps x, the gates and the first product, and computes the rest again.
///
/// State   gate_up_proj [E, 2F, D]  SwiGLU: rows 0 to F - 1 gate, the others up
///         up_proj [E, F, D], up_proj_bias [E, F]  otherwise; biases optional
///         down_proj [E, D, F], down_proj_bias [E, D]
///         hollow until loaded; frozen weights may be bfloat16, each expert's being converted when it is used
///         After quantize(): E layers <e>.<projection>.base_layer in the place of a projection, in four bits.
///         By adapt_expert(): <e>.<projection>.lora_A.weight [R, in], .lora_B.weight [rows, R]
///         By adapt_parameters(): lora_A.weight [E R, in], lora_B.weight [rows, R E] for the last projection,
///         base_layer.lora_A.weight and so on for the one before: PEFT's target_parameters. Expert e has the rows
///         from e R of A, and of B every E-th column from e.
/// Throws  c10::ValueError  on construction unless all sizes are at least 1; for SwiGLU with biases
///                          in forward() unless x is [T, D] and the routing of T tokens
///                          in quantize() and the adapting ones for a projection that the bank lacks, or that is
///                          quantised or adapted already; for rank < 1; for dropout in adapt_parameters()
///                          in merge() and unmerge() for projections in four bits, and when that is done already
/// Holds   a token's sum is taken in the order of the experts: no atomics, no dependence on how rows are shared out.
class ExpertBankImpl : public ExpertBankBase {
 public:
  explicit ExpertBankImpl(ExpertBankOptions options);

  int64_t num_experts() const override { return options.num_experts(); }
  int64_t in_features() const override { return options.in_features(); }
  Tensor forward(const Tensor& x_TD, const Routing& routing, kernels::Dropout dropout = {}) override;

  /// Draws the weights from counters: U(±1/√in), as torch::nn::Linear does; biases likewise.
  void initialise(uint64_t key);

  /// The projections, up before down.
  std::vector<std::string> projections() const;
  /// Puts a projection into four bits: layers without a weight, one for each expert, to be filled.
  void quantize(const std::string& projection, const NF4LinearOptions& how);
  /// Those layers; empty for a dense projection.
  const std::vector<NF4Linear>& four_bit_layers(const std::string& projection) const;
  /// [E, rows, in].
  std::vector<int64_t> shape_of(const std::string& projection) const;
  /// The projection of all experts [E, rows, in], active updates added (in float32, rounded once to the type of a dense
  /// weight; float32 for one in four bits): the stored tensor, or a temporary.
  Tensor dense_weight(const std::string& projection) const;

  /// Freezes the bank and adds an update of one expert's projection.
  void adapt_expert(int64_t expert, const ExpertLoRAOptions& lora);
  /// Freezes the bank and adds an update of each of these projections for all experts; once.
  void adapt_parameters(const std::vector<ExpertLoRAOptions>& loras);
  /// A kaiming-uniform from counters of (seed, path + its name below the bank), B zero.
  void initialise_updates(uint64_t seed, const std::string& path = "");

  struct Update {
    std::string path;     ///< below the bank, of the module that holds A and B; empty: the bank itself
    int64_t expert = -1;  ///< -1: all
    ExpertLoRAOptions options;
    bool of_down = false;
    int64_t first_row = 0, num_rows = 0;
    Matrix lora_A{nullptr}, lora_B{nullptr};

    /// scaling B A of one expert [num_rows, in], float32.
    Tensor of_expert(int64_t index, int64_t num_experts) const;
  };
  const std::vector<Update>& updates() const { return updates_; }
  /// Adds the updates to the weights, takes them out again; a disabled one is not computed and gets no gradient.
  void merge();
  void unmerge();
  void set_enabled(bool enabled) { enabled_ = enabled; }

  ExpertBankOptions options;
  Tensor up_weight;           ///< gate_up_proj or up_proj; undefined in four bits
  Tensor down_weight;         ///< likewise
  Tensor up_bias, down_bias;  ///< or undefined

 private:
  Update update_of(const ExpertLoRAOptions& lora, int64_t expert) const;
  bool is_down(const std::string& projection) const;
  bool active() const { return enabled_ && !merged_; }
  Tensor with_updates(const std::string& projection, double factor) const;
  void add_to_weights(double factor);
  void freeze();
  torch::nn::Module& module_of(int64_t expert, const std::string& projection);
  void add_updates(BankPass& pass, std::vector<Tensor>& tensors) const;

  std::map<std::string, std::shared_ptr<torch::nn::Module>> modules_;  // "3", "3.up_proj"
  std::vector<Update> updates_;
  std::vector<NF4Linear> four_bit_up_, four_bit_down_;
  bool enabled_ = true, merged_ = false;
};
TORCH_MODULE(ExpertBank);

/// Every ExpertBank below `root` with its path, in order.
std::vector<std::pair<std::string, std::shared_ptr<ExpertBankImpl>>> expert_banks(const torch::nn::Module& root);

}  // namespace lathe::nn
