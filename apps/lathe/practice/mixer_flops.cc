// Question 1a: the operations of a Mixer's training step.
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>

#include <cmath>

#include "lathe/nn/checkpoint.h"
#include "practice/mixer.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr double kCountedBatch = 2;  // the counts are proportional to the batch

struct PlannedFlops {
  Amount forward, backward, recomputed;
  Amount total() const { return forward + backward + recomputed; }
};

// Of the exam's 24 blocks, as the planner follows them.
PlannedFlops planned_flops(Amount num_samples, bool recompute = false) {
  cost::Ledger ledger;
  cost::Value x = planned_input(ledger, kExamMixer, num_samples);
  for (int64_t i = 0; i < static_cast<int64_t>(kExamMixer.num_blocks); ++i) {
    const auto block = [&ledger, num_samples, i](const cost::Value& in) {
      return cost::mixer_block(ledger, in, planned_block(kExamMixer, "blocks." + std::to_string(i) + "."), num_samples);
    };
    x = recompute ? ledger.checkpoint(x, block) : block(x);
  }
  ledger.backward(x, ledger.allocate(x.buffer->bytes()));
  const auto spent = [&](cost::Pass pass) { return ledger.flops(pass, cost::Part::Linear); };
  return {spent(cost::Pass::Forward), spent(cost::Pass::Backward), spent(cost::Pass::Recompute)};
}

struct DerivedFlops {
  Amount tokens, channels, layer, sample, forward, backward, step, full;
  Amount again;  // with recomputation, of one sample in one layer
};

DerivedFlops derive_flops(Working& working) {
  const cost::MixerSizes& m = kExamMixer;
  working.say(
      "Counted are the matrix products. A product of [m, k] by [k, n] makes m n sums of "
      "k multiply-adds: 2 m k n FLOPs. Embedding, pooling and head are left out.");
  DerivedFlops flops{};
  flops.tokens =
      working.derive("Token mixing, of one sample in one layer: W1 [d_s, s] and W2 [s, d_s], each on c channels",
                     filled("4 s c d_s = 4 x {} x {} x {}", {m.sequence_length, m.width, m.tokens_hidden_size}),
                     cost::token_mixing_flops(m), Unit::Flops);
  flops.channels =
      working.derive("Channel mixing: W3 [d_c, c] and W4 [c, d_c], each on s patches",
                     filled("4 s c d_c = 4 x {} x {} x {}", {m.sequence_length, m.width, m.channels_hidden_size}),
                     cost::channel_mixing_flops(m), Unit::Flops);
  flops.layer = working.derive("A layer is the sum",
                               filled("{} + {}", {cost::token_mixing_flops(m), cost::channel_mixing_flops(m)}),
                               cost::mixer_block_flops(m), Unit::Flops);
  const Amount sample = m.num_blocks * cost::mixer_block_flops(m), forward = kExamBatch * sample;
  flops.sample = working.derive("All layers, one sample", filled("{} x {}", {m.num_blocks, cost::mixer_block_flops(m)}),
                                sample, Unit::Flops);
  flops.forward =
      working.derive("Forward pass of the batch", filled("{} x {}", {kExamBatch, sample}), forward, Unit::Flops);
  flops.backward = working.derive(
      "Backward pass: each product y = W x has two, W'g for the gradient of its input and g x' for that of its weight, "
      "each as large as the product itself",
      filled("2 x {}", {forward}), 2 * forward, Unit::Flops);
  flops.step = working.derive("Forward and backward together", filled("3 x {}", {forward}), 3 * forward, Unit::Flops);
  flops.full = working.derive("With full recomputation (activation checkpointing) one more forward pass",
                              filled("4 x {}", {forward}), 4 * forward, Unit::Flops);
  flops.again = working.derive("... of one sample in one layer", filled("4 x {}", {cost::mixer_block_flops(m)}),
                               4 * cost::mixer_block_flops(m), Unit::Flops);
  return flops;
}

constexpr cost::ElementwiseConvention kConventions[] = {{1, 5}, {8, 8}, {14, 8}};

Table neglected_work() {
  Table table{"What the count leaves out, forward",
              "Biases and residuals at 1 FLOP per element; what an element of GELU or LayerNorm costs is a convention, "
              "so three are shown.",
              {"GELU", "LayerNorm", "FLOPs of a layer and sample", "forward pass with it"},
              {}};
  const Amount layer = cost::mixer_block_flops(kExamMixer);
  for (const cost::ElementwiseConvention convention : kConventions) {
    const Amount extra = cost::elementwise_flops(kExamMixer, convention);
    table.rows.push_back({amount_text(convention.gelu), amount_text(convention.layer_norm), amount_text(extra),
                          amount_text(kExamBatch * kExamMixer.num_blocks * (layer + extra), Unit::Flops)});
  }
  return table;
}

struct RuleOfThumb {
  Amount flops, over_right;
};

RuleOfThumb derive_rule_of_thumb(Working& working, Amount step) {
  const Amount weights = kExamMixer.num_blocks * cost::mixer_block_weights(kExamMixer);
  const Amount tokens = kExamBatch * kExamMixer.sequence_length;
  const Amount rule = working.derive(
      "The Transformer's rule, 6 x parameters x tokens, does not hold: a weight of channel mixing acts on each of the "
      "s patches, but a weight of token mixing on each of the c channels",
      filled("6 x {} x {}", {weights, tokens}), 6 * weights * tokens, Unit::Flops);
  return {rule,
          working.derive("... it says so many times the right number", filled("{} / {}", {rule, step}), rule / step)};
}

// Everything but the products, each operation for itself: the elements that it makes, at their convention's price.
Amount counted_elementwise(nn::MixerBlockImpl& block, const Tensor& x, cost::ElementwiseConvention convention) {
  const auto made = counted_elements([&] {
    const auto parameters = block.named_parameters();
    const auto linear = [&](const Tensor& in, const std::string& name) {
      return at::linear(in, parameters[name + ".weight"]) + parameters[name + ".bias"];
    };
    const auto mlp = [&](const Tensor& in, const std::string& name) {
      return linear(at::gelu(linear(in, name + ".fc1")), name + ".fc2");
    };
    const auto norm = [&](const Tensor& in) { return at::layer_norm(in, {in.size(-1)}); };
    const Tensor u = x + mlp(norm(x).transpose(1, 2), "mlp_tokens").transpose(1, 2);
    return u + mlp(norm(u), "mlp_channels");
  });
  return made.at("aten::add") + convention.gelu * made.at("aten::gelu") +
         convention.layer_norm * made.at("aten::layer_norm");
}

struct CountedBlock {
  Amount forward = 0, backward = 0;
  double forward_seconds = 0, backward_seconds = 0;
};

CountedBlock count_block(const std::function<Tensor(const Tensor&)>& block, const Tensor& x) {
  CountedBlock counted;
  Tensor y;
  counted.forward = static_cast<Amount>(counted_flops([&] { y = block(x); }));
  const Tensor grad = drawn(y.sizes(), "1a.gradient");
  counted.backward = static_cast<Amount>(counted_flops([&] { y.backward(grad); }));
  counted.forward_seconds = seconds_of([&] { y = block(x); });
  counted.backward_seconds = seconds_of([&] { block(x).backward(grad); }) - counted.forward_seconds;
  return counted;
}

// Of 24 blocks and 1024 samples.
void claim_exam(Working& working, const DerivedFlops& derived) {
  const PlannedFlops sample = planned_flops(1), batch = planned_flops(kExamBatch),
                     again = planned_flops(kExamBatch, /*recompute=*/true);
  working.claim_equal("The exam's 24 blocks as the planner follows them, operator by operator: one sample, forward",
                      derived.sample, sample.forward, Unit::Flops);
  working.claim_equal("... the batch of 1024, forward", derived.forward, batch.forward, Unit::Flops);
  working.claim_equal("... backward", derived.backward, batch.backward, Unit::Flops);
  working.claim_equal("... together", derived.step, batch.total(), Unit::Flops);
  working.claim_equal("... with every block computed again", derived.full, again.total(), Unit::Flops);
}

void measure_flops(Working& working, const DerivedFlops& derived, const RuleOfThumb& rule) {
  nn::MixerBlock block = make_block(kExamMixer, "1a");
  const Tensor x = drawn({static_cast<int64_t>(kCountedBatch), 128, 1024}, "1a.x").requires_grad_();
  const auto lathe = [&](const Tensor& in) { return block->forward(in); };
  const CountedBlock own = count_block(lathe, x),
                     plain = count_block([&](const Tensor&in) { return plain_block(in, *block); }, x);
  const auto products = [&](const Tensor& in, const std::string& mlp) {
    const auto parameters = block->named_parameters();
    return static_cast<Amount>(counted_flops(
        [&] { at::linear(at::linear(in, parameters[mlp + ".fc1.weight"]), parameters[mlp + ".fc2.weight"]); }));
  };
  working.claim_equal("The products of token mixing, forward, 2 samples", kCountedBatch * derived.tokens,
                      products(x.transpose(1, 2), "mlp_tokens"), Unit::Flops);
  working.claim_equal("... and of channel mixing", kCountedBatch * derived.channels, products(x, "mlp_channels"),
                      Unit::Flops);
  working.claim_equal("MixerBlock, forward, 2 samples: the operations counted are those of the formula",
                      kCountedBatch * derived.layer, own.forward, Unit::Flops);
  working.claim_equal("MixerBlock, backward: twice as many", 2 * kCountedBatch * derived.layer, own.backward,
                      Unit::Flops);
  working.claim_equal("The paper's formula by LibTorch's operators, forward and backward",
                      3 * kCountedBatch * derived.layer, plain.forward + plain.backward, Unit::Flops);
  claim_exam(working, derived);
  const Tensor grad = drawn(x.sizes(), "1a.gradient");
  const Amount recomputed = static_cast<Amount>(counted_flops([&] {
    nn::checkpoint([&](const std::vector<Tensor>& in) { return block->forward(in[0]); }, {x}).backward(grad);
  }));
  working.claim_equal("MixerBlock under full recomputation: four forward passes' work", kCountedBatch * derived.again,
                      recomputed, Unit::Flops);
  Amount weights = 0;
  for (const Tensor& parameter : block->parameters())
    weights += parameter.dim() == 2 ? static_cast<Amount>(parameter.numel()) : 0;
  const Amount layers = kExamMixer.num_blocks, tokens = kExamBatch * kExamMixer.sequence_length;
  working.claim_equal("6 x the weights of 24 blocks, counted in one, x tokens", rule.flops,
                      6 * layers * weights * tokens, Unit::Flops);
  working.claim_close("6 x the block's weights x tokens, over the operations counted", rule.over_right,
                      6 * weights * kCountedBatch * kExamMixer.sequence_length / (own.forward + own.backward), 1e-12);
  for (const cost::ElementwiseConvention convention : kConventions) {
    const Amount left_out = working.derive(
        filled("Left out, of one sample in one layer, GELU at {}, LayerNorm at {}, biases and residuals at 1",
               {convention.gelu, convention.layer_norm}),
        filled("10 u + 2 u + {} x 8 u + {} x 2 u, u = {}", {convention.gelu, convention.layer_norm, kExamMixer.unit()}),
        cost::elementwise_flops(kExamMixer, convention), Unit::Flops);
    const Amount counted = counted_elementwise(*block, x, convention);
    working.claim_equal(
        filled("... by the elements that each operation makes, 2 samples, GELU at {}", {convention.gelu}),
        kCountedBatch * left_out, counted, Unit::Flops);
    const Amount share = working.derive(
        "... as a share of the products", filled("{} / {}", {left_out, derived.layer}),
        cost::elementwise_flops(kExamMixer, convention) / cost::mixer_block_flops(kExamMixer), Unit::Share);
    working.claim_close("... as a share of the operations counted", share, counted / own.forward, 1e-12, Unit::Share);
  }
  const auto row = [](const char* name, Amount flops, double seconds) {
    return std::vector<std::string>{name, short_number(1000 * seconds) + " ms",
                                    short_number(flops / seconds / 1e9) + " GFLOP/s"};
  };
  working.answer.tables.push_back({"One block, 2 samples: times on this machine (shown, not judged)",
                                   "",
                                   {"pass", "time", "speed"},
                                   {row("MixerBlock, forward", own.forward, own.forward_seconds),
                                    row("MixerBlock, backward", own.backward, own.backward_seconds),
                                    row("LibTorch's operators, forward", plain.forward, plain.forward_seconds),
                                    row("LibTorch's operators, backward", plain.backward, plain.backward_seconds)}});
}

Answer answer_mixer_flops(const Settings& settings) {
  Working working(settings);
  const DerivedFlops derived = derive_flops(working);
  const RuleOfThumb rule = derive_rule_of_thumb(working, derived.step);
  working.answer.in_short =
      "3 x 24 x 1024 x 4 s c (d_s + d_c) = " + amount_text(derived.step, Unit::Flops) + ", a third of it forward.";
  working.answer.tables.push_back(neglected_work());
  measure_flops(working, derived, rule);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion1a;
const Question kQuestion1a = {"1a", "Operations of a Mixer's training step",
                              "An MLP-Mixer has s = 128 patches, c = 1024 channels, hidden widths d_s = 512 (token "
                              "mixing) and d_c = 4096 (channel mixing) and 24 layers. How many floating-point "
                              "operations does one forward and backward pass over a batch of 1024 samples take?",
                              answer_mixer_flops};

}  // namespace lathe::app::practice
