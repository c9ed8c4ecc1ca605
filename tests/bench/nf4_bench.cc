// Four bits as Lathe does them, own CPU seconds per call: nf4_bench ops | nf4_bench step nf4|dense FLOAT|BFLOAT16 ...
//   nf4_bench ops                      quantise, dequantise, products of a 4096 x 4096 weight
//   nf4_bench step BASE STORAGE COMPUTE REPEATS     a LoRA step of the block stack over 1,024 tokens
// Prints one JSON line: the median and every sample of each operation.
#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "bench/hold_to_avx2.h"
#include "bench/nf4_stack.h"
#include "lathe/base/clock_meter.h"
#include "lathe/optim/adam.h"
#include "lathe/train/memory_meter.h"

namespace lathe::bench {
namespace {

double cpu_seconds() { return ClockMeter::seconds(CLOCK_PROCESS_CPUTIME_ID); }

double wall_seconds() { return ClockMeter::seconds(CLOCK_MONOTONIC); }

std::string json;

// The medians of `repeats` samples of `inner` calls each, after one that warms.
void measure(const std::string& name, int repeats, int inner, const std::function<void()>& run) {
  std::vector<double> cpu, wall;
  for (int i = -1; i < repeats; ++i) {
    const double cpu_start = cpu_seconds(), wall_start = wall_seconds();
    for (int call = 0; call < inner; ++call) run();
    if (i < 0) continue;
    cpu.push_back((cpu_seconds() - cpu_start) / inner);
    wall.push_back((wall_seconds() - wall_start) / inner);
  }
  const auto median = [](std::vector<double>& v) {
    std::sort(v.begin(), v.end());
    return (v[v.size() / 2] + v[(v.size() - 1) / 2]) / 2;
  };
  json += (json.empty() ? "\"" : ", \"") + name + "\": {\"cpu_s\": " + std::to_string(median(cpu)) +
          ", \"wall_s\": " + std::to_string(median(wall)) + "}";
}

const char* word(at::ScalarType type) { return type == at::kBFloat16 ? "bf16" : "fp32"; }

void operations() {
  const at::NoGradGuard no_grad;
  constexpr int64_t kSide = 4096;
  torch::manual_seed(0);
  const Tensor dense = torch::randn({kSide, kSide});
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    nn::NF4Linear layer(kSide, kSide, /*bias=*/false, nn::NF4LinearOptions().double_quant(true).compute(type));
    if (type == at::kFloat) measure("quantize fp32", 5, 2, [&] { layer->quantize(dense); });
    layer->quantize(dense.to(type));
    measure(std::string("dequantize ") + word(type), 9, 8, [&] {
      layer->decode(0, kSide, at::empty({kSide, kSide}, type));
    });
    for (const int64_t rows : {1, 16, 512}) {
      const Tensor x = torch::randn({rows, kSide}).to(type);
      measure("linear " + std::string(word(type)) + " M" + std::to_string(rows), rows < 64 ? 9 : 3, rows < 64 ? 8 : 1,
              [&] { layer->forward(x); });
    }
  }
}

void step(const StackOptions& options, int repeats) {
  torch::manual_seed(0);
  Stack stack(options);
  std::vector<optim::Trained> trained;
  for (const auto& item : stack.named_parameters())
    if (item.value().requires_grad()) trained.push_back({item.key(), item.value()});
  optim::AdamW optimizer(trained);
  const Tensor x = torch::randn({1024, options.hidden});
  measure("step", repeats, 1, [&] {
    optimizer.zero_grad();
    stack.forward(x, {}).square().mean().backward();
    optimizer.step(1e-4);
  });
}

at::ScalarType parse(const std::string& word) { return word == "bf16" ? at::kBFloat16 : at::kFloat; }

}  // namespace
}  // namespace lathe::bench

int main(int argc, char** argv) {
  lathe::bench::hold_to_avx2_if_asked();
  lathe::train::MemoryMeter::install();  // the allocator of the driver
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "ops") {
    lathe::bench::operations();
  } else if (what == "step" && argc == 6) {
    lathe::bench::StackOptions options;
    options.four_bit = std::string(argv[2]) == "nf4";
    options.storage = lathe::bench::parse(argv[3]);
    options.compute = lathe::bench::parse(argv[4]);
    lathe::bench::step(options, std::stoi(argv[5]));
  } else {
    return 2;
  }
  std::printf("{%s}\n", lathe::bench::json.c_str());
  return 0;
}
