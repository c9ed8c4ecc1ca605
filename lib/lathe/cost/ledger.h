#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "lathe/cost/amount.h"

namespace lathe::cost {

/// What floating-point operations are spent on. What is counted as Linear while the head works is the head's.
enum class Part { Linear, Adapter, Attention, Head };
constexpr size_t kNumParts = 4;

/// Where in a step they are spent.
enum class Pass { Forward, Recompute, Backward };
constexpr size_t kNumPasses = 3;

/// The part of a model that works: what lives is also counted by it.
enum class Site { Embeddings, Attention, TokenMixing, ChannelMixing, Mlp, Experts, Head, Gradients };
constexpr size_t kNumSites = 8;

/// Of LibTorch's default generator.
inline constexpr Amount kGeneratorStateBytes = 5056;

class Ledger;

/// Bytes of a tensor that nobody allocates: they count as live until the last handle is gone.
class Allocation {
 public:
  Allocation(Ledger& ledger, Amount bytes);
  ~Allocation();
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;
  Amount bytes() const { return bytes_; }

 private:
  Ledger& ledger_;
  Amount bytes_;
  Site site_;
  bool temporary_;  ///< made in the backward pass
};
using Buffer = std::shared_ptr<const Allocation>;

/// One operator of the forward pass, as autograd holds it: what it saved lives in `backward`, which takes the gradient
/// of the output and returns one for each input; null where none is wanted.
struct Node {
  std::vector<std::shared_ptr<Node>> inputs;
  std::function<std::vector<Buffer>(Buffer grad)> backward;
  int64_t order = 0;
  Site site{};
  Buffer grad{};  ///< collected so far
};

/// A tensor [rows, columns] of the step.
struct Value {
  Amount rows = 0, columns = 0;
  Buffer buffer;
  std::shared_ptr<Node> node{};  ///< null: needs no gradient
  Buffer source{};               ///< under the policy elementwise: what it is computed from again

  bool needs_gradient() const { return node != nullptr; }
  Amount elements() const { return rows * columns; }
};

/// What an operator keeps of a tensor for its backward pass: the tensor, or what it can be had from.
class Saved {
 public:
  Saved() = default;
  Saved(Ledger& ledger, const Value& value);
  /// The tensor, made again if it was not kept.
  Buffer unpack() const;

 private:
  Ledger* ledger_ = nullptr;
  mutable Buffer kept_;
  Amount again_bytes_ = 0;
  bool given_away_ = false;  ///< by unpack(): a checkpoint's second run made it, and holds it no longer
};

/// Follows a training step as LibTorch would execute it, without a tensor: allocations and releases, operations, and
/// the backward pass in autograd's order. The shadow of the engine; ops.h has the shadows of the modules.
class Ledger {
 public:
  Buffer allocate(Amount bytes);
  /// A float32 tensor: an operator's output.
  Value tensor(Amount rows, Amount columns);
  /// An operator's output that never stands alone: written over another tensor, or in tiles.
  void note_output(Amount elements) { outputs_ += pass_ == Pass::Forward ? elements * kFloatBytes : 0; }
  void count(Part part, Amount flops) {
    const Part spent = part == Part::Linear && site_ == Site::Head ? Part::Head : part;
    flops_[static_cast<size_t>(pass_)][static_cast<size_t>(spent)] += flops;
  }

  /// Makes `output` the result of an operator with these inputs, if any of them needs a gradient and gradients are on;
  /// `trains`: parameters of the operator do.
  void record(Value& output, const std::vector<const Value*>& inputs, bool trains,
              std::function<std::vector<Buffer>(Buffer)> backward);
  /// A parameter's gradient: kept, or added to the one that is there when the operator is done.
  void add_gradient(const std::string& parameter, Amount bytes);
  /// From the loss to the parameters; frees what was saved.
  void backward(const Value& output, Buffer grad);

  /// x -> fn(x), nothing kept but x and the generator's state; fn runs again in the backward pass.
  Value checkpoint(const Value& x, const std::function<Value(const Value&)>& fn);
  /// nn::decide_once(): f(), and in a region's second run what it gave in the first.
  Buffer decide_once(const std::function<Buffer()>& f);
  /// `loss` is part of the objective besides the output from which backward() starts.
  void add_objective(const Value& loss);
  /// Runs fn without recording.
  Value without_gradient(const std::function<Value()>& fn);
  bool gradients_on() const { return gradients_on_; }

  bool recomputing() const { return pass_ == Pass::Recompute; }
  void set_elementwise(bool on) { elementwise_ = on; }
  bool elementwise() const { return elementwise_; }
  /// The name under which a peak is remembered from now on.
  void enter(const std::string& phase);
  /// Where what is allocated from now on belongs.
  void enter(Site site) { site_ = site; }

  Amount live_bytes() const { return live_; }
  Amount live_bytes(Site site) const { return live_at_[static_cast<size_t>(site)]; }
  Amount peak_bytes() const { return peak_; }
  /// Of the forward passes: what stands in memory where each operator's output is kept.
  Amount output_bytes() const { return outputs_; }
  /// The sum of all allocations so far.
  Amount written_bytes() const { return written_; }
  const std::string& peak_phase() const { return peak_phase_; }
  /// The peak of each phase, in the order in which they began.
  const std::vector<std::pair<std::string, Amount>>& phase_peaks() const { return phase_peaks_; }
  /// Of the peak: the gradients of parameters.
  Amount peak_gradient_bytes() const { return peak_gradients_; }
  /// Of the peak: what the backward pass made besides, gradients of activations and what it computed again.
  Amount peak_temporary_bytes() const { return peak_temporaries_; }
  Amount gradient_bytes() const { return gradient_bytes_; }
  Amount largest_gradient_bytes() const;
  void drop_gradients() {
    gradients_.clear();
    gradient_bytes_ = 0;
  }
  Amount flops(Pass pass, Part part) const { return flops_[static_cast<size_t>(pass)][static_cast<size_t>(part)]; }

 private:
  friend class Allocation;
  Amount live_ = 0, peak_ = 0, written_ = 0, outputs_ = 0, gradient_bytes_ = 0, peak_gradients_ = 0;
  Amount temporaries_ = 0, peak_temporaries_ = 0;
  std::array<Amount, kNumSites> live_at_{};
  Site site_ = Site::Embeddings;
  std::vector<std::pair<std::string, Amount>> phase_peaks_;
  size_t phase_ = 0;  ///< among them
  std::string peak_phase_;
  std::array<std::array<Amount, kNumParts>, kNumPasses> flops_{};
  std::unordered_map<std::string, Buffer> gradients_;
  std::vector<Buffer> added_gradients_;  ///< of the operator whose backward pass runs
  Pass pass_ = Pass::Forward;
  int64_t num_nodes_ = 0;
  bool gradients_on_ = true;
  bool elementwise_ = false;
  struct Decisions {
    std::shared_ptr<std::vector<Buffer>> values{};  ///< null: outside of regions
    bool replaying = false;
    size_t next = 0;
  } decisions_;
  std::vector<std::shared_ptr<Node>> objectives_;
  bool trains_ = false;  ///< whether a parameter of an operator since the last checkpoint() began trains
};

}  // namespace lathe::cost
