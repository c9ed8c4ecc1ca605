#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lathe/arch/mlp_experts.h"
#include "lathe/cost/ledger.h"
#include "lathe/recipe/values.h"

/// What Lathe's modules allocate and compute, operator by operator: each function is the shadow of its namesake in
/// component nn. Change the two together; tests/train/measure_step_test.cc holds them against each other.
namespace lathe::cost {

/// The type of a matrix in memory.
enum class Storage { Float32, BFloat16, FourBit };
/// Of the dense ones.
Amount bytes_per_element(Storage storage);
/// A quantised weight as nn::NF4Linear keeps it: codes, scales (quantised themselves or not) and tables.
Amount four_bit_bytes(Amount elements, Amount blocksize, bool double_quant);
/// What nn::NF4Linear holds decoded at a time.
Amount panel_bytes(Amount in_features, Amount out_features, Storage compute);

/// A linear layer as a training step sees it.
struct LinearCost {
  std::string path;
  Amount in_features = 0, out_features = 0;
  bool bias = true;
  bool trains = false;  ///< its own weight and bias
  Amount rank = 0;      ///< of its adapter; 0: none
  bool adapter_dropout = false;
  Storage storage = Storage::Float32, compute = Storage::Float32;

  Amount parameters() const { return in_features * out_features + (bias ? out_features : 0); }
  Amount adapter_parameters() const { return rank * (in_features + out_features); }
};

/// nn::LinearBase::product: x Wᵀ.
Value linear_product(Ledger& ledger, const Value& x, const LinearCost& linear);
/// nn::LinearBase::forward.
Value linear(Ledger& ledger, const Value& x, const LinearCost& linear);
/// nn::joint_forward: several layers of one input, side by side.
Value joint_forward(Ledger& ledger, const Value& x, const std::vector<const LinearCost*>& linears);
/// nn::linear_gelu.
Value linear_gelu(Ledger& ledger, const Value& x, const LinearCost& linear);
/// A norm's or a table's parameters.
struct ModuleCost {
  std::string path;
  bool trains = false;
};
/// nn::gelu_of_product.
Value gelu_of_product(Ledger& ledger, const Value& h);
/// nn::linear_residual_norm.
Value linear_residual_norm(Ledger& ledger, const Value& x, const LinearCost& linear, const Value& residual,
                           const ModuleCost& norm, bool dropout);
/// nn::LayerNorm::forward.
Value layer_norm(Ledger& ledger, const Value& x, const ModuleCost& norm);
/// nn::Embedding::forward of `rows` indices into a table [entries, columns].
Value embedding(Ledger& ledger, Amount rows, Amount entries, Amount columns, const ModuleCost& table, Storage storage);
/// RMSNorm: keeps x and the root of each row's mean square.
Value rms_norm(Ledger& ledger, const Value& x, const ModuleCost& norm);
/// nn::swiglu of [gate | up].
Value swiglu(Ledger& ledger, const Value& h);
/// y + residual, in place.
Value added(Ledger& ledger, const Value& y, const Value& residual);
/// Cross-entropy of the next token over a head [vocabulary, width], kHeadRows rows at a time: logits and their gradient
/// never exist whole; the gradients of x and of the head are made with the loss. `head.path` names whose weight it is.
Value head_cross_entropy(Ledger& ledger, const Value& x, const LinearCost& head);
inline constexpr Amount kHeadRows = 256;
/// at::tanh.
Value tanh(Ledger& ledger, const Value& x);
/// at::index_select of some rows.
Value select_rows(Ledger& ledger, const Value& x, Amount rows);
/// nn::cross_entropy_sum, and the backward pass from it.
void cross_entropy_backward(Ledger& ledger, const Value& logits);
/// nn::dropout.
Value dropout(Ledger& ledger, const Value& x, bool active);

/// The work of attention over samples of `length` rows each.
struct AttentionCost {
  Amount num_samples = 0, query_length = 0, key_length = 0, num_heads = 0, width = 0;
  bool key_gradient = true;
};
/// nn::self_attention and nn::cross_attention: `inputs` is qkv, or q and kv.
Value attention(Ledger& ledger, const std::vector<const Value*>& inputs, const AttentionCost& cost);

/// How a router spreads the tokens of a micro-batch, as far as memory and operations depend on it.
struct ExpertLoad {
  Amount fullest = 1;  ///< the fullest expert's assignments over the mean, before any are dropped
  Amount dropped = 0;  ///< share of the assignments beyond the experts' capacity
};
/// The experts that stand for an MLP.
struct ExpertsCost {
  std::string path;
  arch::MlpExperts shape;
  ExpertLoad load{};
  Amount in_features = 0, hidden_features = 0;
  bool trains = false, router_trains = false;
  bool training = false;  ///< noise, jitter and capacity act then
  Storage up_storage = Storage::Float32, down_storage = Storage::Float32, compute = Storage::Float32;
  Amount up_ranks = 0, down_ranks = 0;  ///< of the experts' adapters, summed over the experts
  bool adapter_dropout = false;
  bool gated = false;                ///< SwiGLU without biases, as in decoders; else GELU with biases
  std::vector<LinearCost> shared{};  ///< the two layers of the shared experts, or none

  Amount num_experts() const { return static_cast<Amount>(shape.num_experts); }
  Amount top_k() const { return static_cast<Amount>(shape.top_k); }
  /// Columns of the first product.
  Amount up_features() const { return (gated ? 2 : 1) * hidden_features; }
  Amount adapter_parameters() const {
    return up_ranks * (in_features + up_features()) + down_ranks * (in_features + hidden_features);
  }
};
/// What nn::Routing holds, and what nn::drop_over_capacity leaves of it.
struct RoutingCost {
  Amount assignments = 0, fullest = 0;  ///< of all experts, of the fullest
  Buffer token, expert;
  Value gate;
  // Of the balance terms; without a buffer where the router has no such thing.
  Value logits{}, scores{}, load{};
  std::vector<Buffer> before_drops{};
};
/// nn::RouterBase::route, nn::drop_over_capacity and nn::BalanceSums::of.
RoutingCost route(Ledger& ledger, const Value& x, const ExpertsCost& cost);
/// nn::MoELayer::forward.
Value experts(Ledger& ledger, const Value& x, const ExpertsCost& cost);

/// A Mixer's block as a training step sees it: its channels are mixed by two layers, or by experts.
struct MixerBlockCost {
  Amount channels = 0;
  ModuleCost norm1, norm2;
  LinearCost tokens_fc1, tokens_fc2, channels_fc1, channels_fc2;
  std::optional<ExpertsCost> experts{};
};
/// nn::MixerBlock::forward.
Value mixer_block(Ledger& ledger, const Value& x, const MixerBlockCost& block, Amount num_samples);

/// nn::run_layers under a recipe's policy.
Value run_layers(Ledger& ledger, const Value& x, int64_t num_layers, const recipe::Checkpointing& policy,
                 const std::function<Value(int64_t, const Value&)>& layer);

}  // namespace lathe::cost
