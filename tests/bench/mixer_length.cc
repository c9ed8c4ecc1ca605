// A Mixer block beside attention blocks of the same width, at one length of the sequence: prints one JSON line with the
// own CPU seconds of a forward and a backward pass, the bytes kept between them, and the FLOPs of mixing along the
// sequence.
//   mixer_length mixer | attention | attention_stored LENGTH [REPEATS]
// Fixed are the width (512), d_s (512), d_c (2048) and 8 heads. `attention` recomputes its scores in backward,
// `attention_stored` keeps them, as autograd does with plain operators.
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <string>

#include "lathe/nn/attention.h"
#include "lathe/nn/mixer.h"
#include "lathe/train/memory_meter.h"

namespace {

using at::Tensor;
using namespace lathe;

constexpr int64_t kWidth = 512, kTokensHidden = 512, kChannelsHidden = 2048, kHeads = 8;

Tensor stored_attention(const Tensor& qkv) {
  const int64_t S = qkv.size(0), D = kWidth / kHeads;
  const auto parts = qkv.view({S, 3, kHeads, D}).permute({1, 2, 0, 3}).unbind(0);
  const Tensor scores = at::softmax(parts[0].matmul(parts[1].transpose(1, 2)) / std::sqrt(static_cast<double>(D)), -1);
  return scores.matmul(parts[2]).transpose(0, 1).reshape({S, kWidth});
}

// u = x + Attention(norm(x)), y = u + MLP(norm(u)): the Mixer block with attention instead of token mixing.
class AttentionBlock {
 public:
  AttentionBlock(int64_t length, bool stored)
      : stored_(stored),
        rows_(std::make_shared<const std::vector<int64_t>>(std::vector<int64_t>{0, length})),
        norm1_(torch::nn::LayerNormOptions({kWidth})),
        norm2_(torch::nn::LayerNormOptions({kWidth})),
        qkv_(kWidth, 3 * kWidth),
        out_(kWidth, kWidth),
        fc1_(kWidth, kChannelsHidden),
        fc2_(kChannelsHidden, kWidth) {}

  Tensor forward(const Tensor& x) {
    const Tensor qkv = qkv_(norm1_(x));
    const Tensor mixed = stored_ ? stored_attention(qkv) : nn::self_attention(qkv, rows_, {.num_heads = kHeads});
    const Tensor u = x + out_(mixed);
    return u + fc2_(at::gelu(fc1_(norm2_(u))));
  }

 private:
  bool stored_;
  nn::RowOffsets rows_;
  torch::nn::LayerNorm norm1_, norm2_;
  torch::nn::Linear qkv_, out_, fc1_, fc2_;
};

struct Measured {
  double seconds = 0;
  int64_t kept_bytes = 0;
};

template <typename Forward>
Measured measure(const Tensor& x, int repeats, Forward&& forward) {
  std::vector<double> seconds;
  Measured measured;
  for (int i = 0; i <= repeats; ++i) {
    const int64_t before = train::MemoryMeter::live_bytes();
    const std::clock_t start = std::clock();
    const Tensor y = forward(x);
    measured.kept_bytes = train::MemoryMeter::live_bytes() - before;
    y.backward(at::ones_like(y));
    if (i > 0)  // the first one warms up
      seconds.push_back(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  }
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  measured.seconds = seconds[static_cast<size_t>(repeats) / 2];
  return measured;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  train::MemoryMeter::install();
  torch::manual_seed(0);
  const std::string kind = argv[1];
  const int64_t length = std::stoll(argv[2]);
  const int repeats = argc > 3 ? std::stoi(argv[3]) : 5;
  const Tensor x = torch::randn({length, kWidth}).requires_grad_();
  Measured measured;
  int64_t mixing_flops = 4 * kWidth * length * kTokensHidden;
  if (kind == "mixer") {
    nn::MixerBlock block(nn::MixerBlockOptions(length, kWidth, kTokensHidden, kChannelsHidden));
    block->reset_parameters();
    measured = measure(x, repeats, [&](const Tensor& input) { return block->forward(input.unsqueeze(0)); });
  } else {
    AttentionBlock block(length, kind == "attention_stored");
    mixing_flops = 8 * length * kWidth * kWidth + 4 * length * length * kWidth;
    measured = measure(x, repeats, [&](const Tensor& input) { return block.forward(input); });
  }
  std::printf("{\"kind\": \"%s\", \"length\": %ld, \"seconds\": %.6f, \"kept_bytes\": %ld, \"mixing_flops\": %ld}\n",
              kind.c_str(), static_cast<long>(length), measured.seconds, static_cast<long>(measured.kept_bytes),
              static_cast<long>(mixing_flops));
  return 0;
}
