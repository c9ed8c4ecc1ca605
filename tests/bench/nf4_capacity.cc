// How large a model takes a LoRA step on four-bit weights: nf4_capacity [BLOCKS [TOKENS [HIDDEN INTERMEDIATE]]]
// A stack of the linear layers of a 13 B Llama (40 blocks, hidden 5120, intermediate 13824), random weights made one
// tensor at a time, takes two steps with full activation checkpointing. Prints the peak against the arithmetic.
#include <torch/torch.h>

#include <chrono>
#include <cstdio>

#include "bench/nf4_stack.h"
#include "lathe/base/memory.h"
#include "lathe/optim/adam.h"
#include "lathe/train/memory_meter.h"

namespace lathe::bench {
namespace {

struct Arithmetic {
  double weights = 0, adapters = 0, activations = 0, num_weights = 0;
  double total() const { return weights + adapters + activations; }
};

Arithmetic arithmetic(const StackOptions& o, int64_t tokens) {
  const auto d = static_cast<double>(o.hidden), f = static_cast<double>(o.intermediate),
             n = static_cast<double>(tokens);
  const auto blocks = static_cast<double>(o.num_blocks), r = static_cast<double>(o.rank);
  const double per_block = 4 * d * d + 3 * d * f;
  Arithmetic a;
  a.num_weights = blocks * per_block;
  // Codes, scales in eight bits, their scales, three tables: 0.516 bytes a weight.
  a.weights = blocks * (per_block * (0.5 + 1.0 / 64 + 4.0 / (64 * 256)) + 7 * (16 + 256) * 4.0);
  // Parameter, gradient, two moments, in float32.
  a.adapters = blocks * 16 * r * (4 * (d + d) + 3 * (d + f));
  // Each block's input; and of the block that is computed again: products, their inputs and gradients, with the ranks.
  const double inner = n * 4 * (3 * d + d + d + d + 2 * f + f + d) + n * 4 * 7 * r;
  a.activations = blocks * n * d * 4 + inner + 3 * n * 4 * f;
  return a;
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int run(const StackOptions& options, int64_t tokens) {
  train::MemoryMeter::install();
  const Arithmetic planned = arithmetic(options, tokens);
  std::printf(
      "%.2f billion weights in %ld blocks, %ld tokens: planned %.0f MB = weights %.0f + adapters %.0f + activations "
      "%.0f\n",
      planned.num_weights / 1e9, static_cast<long>(options.num_blocks), static_cast<long>(tokens),
      planned.total() / 1e6, planned.weights / 1e6, planned.adapters / 1e6, planned.activations / 1e6);
  std::fflush(stdout);
  double start = seconds();
  Stack stack(options);
  std::vector<optim::Trained> trained;
  for (const auto& item : stack.named_parameters())
    if (item.value().requires_grad()) trained.push_back({item.key(), item.value()});
  optim::AdamW optimizer(trained);
  std::printf("made in %.0f s\n", seconds() - start);
  train::MemoryMeter::reset_peak();
  const Tensor x = torch::randn({tokens, options.hidden});
  for (int i = 0; i < 2; ++i) {
    start = seconds();
    optimizer.zero_grad();
    const Tensor loss = stack.forward(x, {nn::Recompute::Full}).square().mean();
    loss.backward();
    optimizer.step(1e-4);
    std::printf("step %d: loss %.6f in %.1f s\n", i, loss.item<double>(), seconds() - start);
    std::fflush(stdout);
  }
  const auto peak = static_cast<double>(train::MemoryMeter::peak_bytes());
  std::printf("peak %.0f MB, planned %+.2f %%; resident at most %.0f MB\n", peak / 1e6,
              100 * (planned.total() / peak - 1), static_cast<double>(peak_resident_memory_bytes()) / 1e6);
  const double fixed = planned.total() - planned.weights - planned.adapters;
  const double per_block = (planned.weights + planned.adapters) / static_cast<double>(options.num_blocks);
  const double blocks = (static_cast<double>(available_memory_bytes()) + peak - fixed) / per_block;
  std::printf("this machine's memory would hold %.0f such blocks: %.1f billion weights\n", blocks,
              blocks * planned.num_weights / static_cast<double>(options.num_blocks) / 1e9);
  return 0;
}

}  // namespace
}  // namespace lathe::bench

int main(int argc, char** argv) {
  lathe::bench::StackOptions options;
  options.num_blocks = argc > 1 ? std::stol(argv[1]) : 40;
  options.hidden = argc > 4 ? std::stol(argv[3]) : 5120;
  options.intermediate = argc > 4 ? std::stol(argv[4]) : 13824;
  return lathe::bench::run(options, argc > 2 ? std::stol(argv[2]) : 64);
}
