#include "lathe/nn/mixer.h"

#include <c10/core/CPUAllocator.h>

#include <atomic>

#include "lathe/nn/checkpoint.h"
#include "lathe/nn/lora.h"
#include "tensor_expect.h"

namespace lathe::nn {
namespace {

using testing::expect_close;
using testing::expect_gradients;
using testing::expect_identical;
using testing::ramp;

MixerBlock make_block(MixerBlockOptions options, at::ScalarType dtype = at::kFloat) {
  MixerBlock block(options);
  double phase = 0;
  for (auto& item : block->named_parameters()) {
    Tensor values = ramp(item.value().sizes(), 0.61, phase += 0.2, dtype) * 0.3;
    if (item.key().starts_with("norm") && item.key().ends_with("weight")) values = values + 1;
    item.value().set_data(values);
  }
  return block;
}

// The formula as the paper writes it, by LibTorch's operators.
Tensor naive(const Tensor& x, MixerBlockImpl& block) {
  const char* form = block.options.gelu() == Gelu::Tanh ? "tanh" : "none";
  const auto parameters = block.named_parameters();
  const auto mlp = [&](const Tensor& in, const std::string& name) {
    const Tensor h = at::linear(in, parameters[name + ".fc1.weight"], parameters[name + ".fc1.bias"]);
    return at::linear(at::gelu(h, form), parameters[name + ".fc2.weight"], parameters[name + ".fc2.bias"]);
  };
  const auto norm = [&](const Tensor& in, const std::string& name) {
    return at::layer_norm(in, {in.size(-1)}, parameters[name + ".weight"], parameters[name + ".bias"],
                          block.options.eps());
  };
  const Tensor u = x + mlp(norm(x, "norm1").transpose(1, 2), "mlp_tokens").transpose(1, 2);
  return u + mlp(norm(u, "norm2"), "mlp_channels");
}

std::vector<Tensor> trained_by(const Tensor& x, const std::vector<MixerBlock>& blocks) {
  std::vector<Tensor> leaves = {x};
  for (const MixerBlock& block : blocks) {
    for (const Tensor& parameter : block->parameters()) {
      if (parameter.requires_grad()) leaves.push_back(parameter);
    }
  }
  return leaves;
}

std::vector<Tensor> gradients(const Tensor& y, const std::vector<Tensor>& leaves) {
  for (const Tensor& leaf : leaves) leaf.mutable_grad().reset();
  (y * ramp(y.sizes(), 1.3, 0.4, y.scalar_type())).sum().backward();
  std::vector<Tensor> result;
  for (const Tensor& leaf : leaves) result.push_back(leaf.grad().clone());
  return result;
}

const MixerBlockOptions kSmall(5, 6, 7, 9);

TEST(MixerBlock, HasTheGradientsOfFiniteDifferences) {
  for (const Gelu gelu : {Gelu::Erf, Gelu::Tanh}) {
    MixerBlock block = make_block(MixerBlockOptions(kSmall).gelu(gelu), at::kDouble);
    const Tensor x = ramp({2, 5, 6}, 0.9, 0.3, at::kDouble).clone().requires_grad_();
    std::vector<Tensor> leaves = block->parameters();
    leaves.push_back(x);
    expect_gradients([&] { return block->forward(x); }, leaves);
  }
}

TEST(MixerBlock, EqualsTheFormulaInBothPrecisions) {
  for (const auto& [dtype, tolerance] : {std::pair(at::kDouble, 1e-12), {at::kFloat, 2e-5}}) {
    for (const Gelu gelu : {Gelu::Erf, Gelu::Tanh}) {
      MixerBlock block = make_block(MixerBlockOptions(20, 33, 17, 70).gelu(gelu).eps(1e-5), dtype);
      const Tensor x = ramp({3, 20, 33}, 0.9, 0.3, dtype).clone().requires_grad_();
      const Tensor y = block->forward(x), expected = naive(x, *block);
      expect_close(y, expected, tolerance, tolerance);
      const auto leaves = trained_by(x, {block});
      const auto ours = gradients(y, leaves), theirs = gradients(expected, leaves);
      for (size_t i = 0; i < ours.size(); ++i)
        expect_close(ours[i], theirs[i], tolerance, tolerance * theirs[i].abs().max().item<double>());
    }
  }
}

TEST(MixerBlock, TakesATransposedInput) {
  MixerBlock block = make_block(kSmall);
  const Tensor x = ramp({2, 6, 5}).transpose(1, 2);
  expect_identical(block->forward(x), block->forward(x.contiguous()));
}

void add_lora(MixerBlockImpl& block, double dropout) {
  double phase = 0;
  for (const NamedSlot& named : named_slots(block)) {
    LoRALinear lora(named.slot->module(), LoRALinearOptions(3, 6).dropout(dropout));
    lora->lora_A->weight.set_data(ramp(lora->lora_A->weight.sizes(), 0.7, phase += 0.3));
    lora->lora_B->weight.set_data(ramp(lora->lora_B->weight.sizes(), 0.5, phase += 0.3));
    named.slot->replace(lora.ptr());
  }
  block.train();
}

TEST(MixerBlock, HasTheSameGradientsUnderEveryPolicy) {
  for (const bool adapted : {false, true}) {
    std::vector<MixerBlock> blocks;
    for (int i = 0; i < 4; ++i) {
      blocks.push_back(make_block(MixerBlockOptions(20, 33, 17, 70)));
      if (adapted) add_lora(*blocks.back(), 0.2);
    }
    const Tensor x = ramp({3, 20, 33}, 0.9, 0.3).clone().requires_grad_();
    const auto run = [&](const LayerPolicy& policy) {
      const DropoutStream stream(11);
      const Tensor y = run_layers(
          x, 4, policy, [&](int64_t i, const Tensor& in) { return blocks[static_cast<size_t>(i)]->forward(in); });
      std::vector<Tensor> result = gradients(y, trained_by(x, blocks));
      result.push_back(y);
      return result;
    };
    const auto plain = run({});
    for (const LayerPolicy& policy :
         {LayerPolicy{Recompute::Elementwise}, LayerPolicy{Recompute::Full}, LayerPolicy{Recompute::Full, 2},
          LayerPolicy{Recompute::Full, 3}, LayerPolicy{Recompute::Full, 1, 2}}) {
      const auto again = run(policy);
      ASSERT_EQ(again.size(), plain.size());
      for (size_t i = 0; i < plain.size(); ++i) expect_identical(again[i], plain[i]);
    }
  }
}

// Counts the bytes that live in LibTorch's CPU allocator, which it stands in for while it exists: oneDNN's products
// inside LibTorch take no allocator whose blocks have a context of their own.
class CountingAllocator final : public c10::Allocator {
 public:
  CountingAllocator() : inner_(c10::GetCPUAllocator()) { c10::SetCPUAllocator(this, 100); }
  ~CountingAllocator() override { c10::SetCPUAllocator(inner_, 100); }
  CountingAllocator(const CountingAllocator&) = delete;
  CountingAllocator& operator=(const CountingAllocator&) = delete;
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block{inner_->allocate(bytes), bytes};
    live() += static_cast<int64_t>(bytes);
    return {block->data.get(), block, &release, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { inner_->copy_data(to, from, bytes); }
  static std::atomic<int64_t>& live() {
    static std::atomic<int64_t> bytes = 0;
    return bytes;
  }

 private:
  struct Block {
    c10::DataPtr data;
    size_t bytes;
  };
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    live() -= static_cast<int64_t>(block->bytes);
    delete block;
  }
  c10::Allocator* inner_;
};

// What a block keeps after its forward pass: its input is the caller's and its output the next block's, u each.
int64_t kept_bytes(MixerBlockImpl& block, const Tensor& x, Recompute policy) {
  const CountingAllocator allocator;
  const int64_t before = CountingAllocator::live();
  const Tensor y = run_layers(x, 1, {policy}, [&](int64_t, const Tensor& in) { return block.forward(in); });
  return CountingAllocator::live() - before;
}

// The exam's layer: S = 128, C = 1024, D_S = 512, D_C = 4096; u = S C elements. By autograd's rules 20 u + 4 S elements
// per sample; where only products are kept x, h₁, u, h₂ and the statistics: 1 + 4 + 1 + 4.
TEST(MixerBlock, KeepsWhatTheClosedFormSays) {
  MixerBlock block = make_block(MixerBlockOptions(128, 1024, 512, 4096));
  for (const int64_t batch : {1, 3}) {
    const Tensor x = ramp({batch, 128, 1024}).requires_grad_();
    const int64_t unit = 128 * 1024, statistics = 4 * 128;
    EXPECT_EQ(kept_bytes(*block, x, Recompute::None), batch * 4 * (20 * unit + statistics));
    EXPECT_EQ(kept_bytes(*block, x, Recompute::Elementwise), batch * 4 * (10 * unit + statistics));
  }
}

TEST(MixerBlock, StatesWhatIsWrong) {
  const auto message = [](const std::function<void()>& f) -> std::string {
    try {
      f();
    } catch (const c10::ValueError& error) {
      return error.what_without_backtrace();
    }
    return "nothing";
  };
  MixerBlock block = make_block(kSmall);
  EXPECT_EQ(message([&] { block->forward(ramp({2, 4, 6})); }), "MixerBlock: expected x [B, 5, 6], got [2, 4, 6]");
  EXPECT_EQ(message([] { MixerBlock(MixerBlockOptions(kSmall).eps(0)); }), "MixerBlock: expected eps > 0, got 0");
  EXPECT_EQ(message([] { MixerBlock(MixerBlockOptions(5, 6, 0, 9)); }),
            "Linear: expected in_features and out_features >= 1, got 5 and 0");
}

}  // namespace
}  // namespace lathe::nn
