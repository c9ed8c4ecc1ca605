#pragma once

#include <ATen/ops/empty.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "lathe/nn/checkpoint.h"
#include "lathe/nn/lora.h"
#include "lathe/nn/modules.h"
#include "lathe/nn/moe_activation.h"
#include "lathe/nn/nf4.h"

namespace lathe::bench {

using at::Tensor;

/// The linear layers of a Llama-shaped block, without attention and norms:
///     x += o(q(x) + k(x) + v(x));   x += down(silu(gate(x)) · up(x))
/// on frozen weights in four bits or dense, each under a LoRA update of rank 16.
struct StackOptions {
  int64_t hidden = 2048, intermediate = 5632, num_blocks = 4, rank = 16;
  bool four_bit = true;
  at::ScalarType storage = at::kFloat;  ///< of dense weights
  at::ScalarType compute = at::kFloat;
};

class Block : public nn::SlottedModule {
 public:
  explicit Block(const StackOptions& o)
      : nn::SlottedModule("Block"),
        options_(o),
        q_(register_linear("q_proj", adapted(o.hidden, o.hidden))),
        k_(register_linear("k_proj", adapted(o.hidden, o.hidden))),
        v_(register_linear("v_proj", adapted(o.hidden, o.hidden))),
        o_(register_linear("o_proj", adapted(o.hidden, o.hidden))),
        gate_(register_linear("gate_proj", adapted(o.hidden, o.intermediate))),
        up_(register_linear("up_proj", adapted(o.hidden, o.intermediate))),
        down_(register_linear("down_proj", adapted(o.intermediate, o.hidden))) {}

  Tensor forward(const Tensor& x) {
    const Tensor qkv = nn::joint_forward(x, {&*q_, &*k_, &*v_});
    const int64_t d = options_.hidden;
    const Tensor mixed = qkv.narrow(1, 0, d) + qkv.narrow(1, d, d) + qkv.narrow(1, 2 * d, d);
    const Tensor y = x + o_(mixed);
    return y + down_(nn::swiglu(nn::joint_forward(y, {&*gate_, &*up_})));
  }

 private:
  // One dense weight lives at a time.
  std::shared_ptr<nn::LinearBase> adapted(int64_t in, int64_t out) const {
    const nn::LoRALinearOptions lora(options_.rank, 2 * static_cast<double>(options_.rank));
    const double bound = 0.1 / std::sqrt(static_cast<double>(in));  // without norms, larger ones overflow in 40 blocks
    const Tensor dense = at::empty({out, in}, options_.four_bit ? at::kFloat : options_.storage);
    dense.uniform_(-bound, bound);
    if (options_.four_bit) {
      nn::NF4Linear base(in, out, /*bias=*/false, nn::NF4LinearOptions().double_quant(true).compute(options_.compute));
      base->quantize(dense);
      return nn::LoRALinear(base.ptr(), lora).ptr();
    }
    nn::Linear base(in, out, /*bias=*/false);
    base->weight.set_data(dense);
    base->weight.requires_grad_(false);
    base->set_precision({options_.storage, options_.compute});
    return nn::LoRALinear(base.ptr(), lora).ptr();
  }

  StackOptions options_;
  nn::LinearSlot q_, k_, v_, o_, gate_, up_, down_;
};

class Stack : public torch::nn::Module {
 public:
  explicit Stack(const StackOptions& options) : torch::nn::Module("Stack") {
    for (int64_t i = 0; i < options.num_blocks; ++i)
      blocks_.push_back(register_module(std::to_string(i), std::make_shared<Block>(options)));
  }
  Tensor forward(const Tensor& x, const nn::LayerPolicy& policy) {
    return nn::run_layers(x, static_cast<int64_t>(blocks_.size()), policy,
                          [this](int64_t i, const Tensor& h) { return blocks_[static_cast<size_t>(i)]->forward(h); });
  }

 private:
  std::vector<std::shared_ptr<Block>> blocks_;
};

}  // namespace lathe::bench
