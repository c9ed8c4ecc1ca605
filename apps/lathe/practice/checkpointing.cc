// Question 2c: gradient checkpointing.
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>

#include "lathe/nn/modules.h"
#include "practice/mixer.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr cost::MixerSizes kDeep{
    .sequence_length = 16, .width = 64, .tokens_hidden_size = 64, .channels_hidden_size = 256, .num_blocks = 24};
constexpr int64_t kDeepBatch = 16;
const std::vector<double> kSegments = {1, 2, 3, 4, 6, 8, 12, 24};

Table exam_table() {
  const Amount unit = kExamBatch * kExamMixer.unit() * cost::kFloatBytes, layers = kExamMixer.num_blocks;
  Table table{"Boundaries every n layers: what lives at the worst moment, (24 / n) A_b + n A_l",
              "The exam's Mixer, batch 1024, float32: A_b = 512 MiB. Beside it a network whose layer keeps no more "
              "than a boundary: only there is the square root of the depth best.",
              {"n", "A_l = 20 A_b (the Mixer)", "A_l = A_b"},
              {}};
  for (const double n : kSegments)
    table.rows.push_back({amount_text(n), amount_text(cost::checkpointed(layers, n, unit, 20 * unit), Unit::Bytes),
                          amount_text(cost::checkpointed(layers, n, unit, unit), Unit::Bytes)});
  return table;
}

// The n of the table that needs least memory when a layer keeps `stash` boundaries.
double best_segment(double stash) {
  return *std::min_element(kSegments.begin(), kSegments.end(), [stash](double a, double b) {
    const double layers = kExamMixer.num_blocks;
    return cost::checkpointed(layers, a, 1, stash) < cost::checkpointed(layers, b, 1, stash);
  });
}

void derive_checkpointing(Working& working) {
  const double layers = kExamMixer.num_blocks;
  working.say(
      "Without checkpointing each operation keeps what its gradient needs until the backward pass comes to it. With "
      "it, only the activations at some boundaries are kept; the backward pass runs the forward pass of a segment "
      "again from its boundary, uses what it leaves, and frees it.");
  working.say(
      "With L layers, boundaries every n of them, A_b bytes for a boundary and A_l for all that a layer keeps, the "
      "worst moment holds the boundaries and one segment: (L / n) A_b + n A_l. The price is one more forward pass.");
  const Amount unit = kExamBatch * kExamMixer.unit() * cost::kFloatBytes;
  working.derive("The exam's Mixer, a boundary at every layer: A_l = 20 A_b",
                 filled("(24 / 1) x {} B + 20 x {} B", {unit, unit}), cost::checkpointed(layers, 1, unit, 20 * unit),
                 Unit::Bytes);
  const cost::TokenFlops full = cost::full_finetuning_flops(1024, 1024),
                         lora = cost::lora_finetuning_flops(1024, 1024, 0);
  working.derive("FLOPs with all weights trained: forward 1, backward 2, recomputed 1", "(1 + 2 + 1) / (1 + 2)",
                 (full.total() + full.forward) / full.total());
  working.derive("FLOPs with frozen weights (LoRA, its own products aside): the backward pass is only 1",
                 "(1 + 1 + 1) / (1 + 1)", (lora.total() + lora.forward) / lora.total());
  working.say(
      "When to use it: activations dominate and there is compute to spare (long sequences, large batches, deep "
      "networks). When not: weights, gradients or optimizer state dominate, or memory is not the limit. Cheaper first: "
      "recompute only GELU and LayerNorm (half of the memory here, 1 % more FLOPs), or use smaller micro-batches, "
      "which cost no FLOPs.");
  working.say(
      "The n that needs least is sqrt(L A_b / A_l). The well-known sqrt(L) supposes that a layer keeps about one "
      "boundary; a Mixer's or a Transformer's keeps about 20.");
}

struct CheckpointedRun {
  Amount kept = 0, peak = 0, flops = 0;
  double seconds = 0;
  std::vector<Tensor> gradients;
};

CheckpointedRun run_checkpointed(const SmallMixer& model, const Tensor& x, const nn::LayerPolicy& policy) {
  CheckpointedRun run;
  const auto parameters = model.parameters();
  const auto finish = [&](const Tensor& y) { at::linear(y.mean(1), model.head).square().sum().backward(); };
  forget_gradients(parameters);
  {
    const ByteMeter meter;
    const Tensor y = model.blocks_forward(x, policy);
    run.kept = static_cast<Amount>(meter.live());
    finish(y);
    run.peak = static_cast<Amount>(meter.peak());
  }
  run.gradients = gradients_of(parameters);
  run.flops = static_cast<Amount>(counted_flops([&] { finish(model.blocks_forward(x, policy)); }));
  run.seconds = seconds_of([&] { finish(model.blocks_forward(x, policy)); });
  forget_gradients(parameters);
  return run;
}

bool all_same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same_bits(a[i], b[i])) return false;
  }
  return a.size() == b.size();
}

// After the forward pass with boundaries every n: those between the segments, and all that the last segment keeps (it
// is not computed again: the backward pass begins with it).
struct DerivedRun {
  Amount boundary, stash, forward;  // of the batch: bytes, bytes, operations of a layer
  Amount generator;                 // bytes

  Amount kept(double n) const { return (kDeep.num_blocks / n - 1) * (boundary + generator) + n * stash; }
};

DerivedRun derive_run(Working& working) {
  const auto batch = static_cast<Amount>(kDeepBatch);
  const cost::MixerSizes& m = kDeep;
  DerivedRun derived{};
  derived.boundary = working.derive("The run: 24 layers, s = 16, c = 64, 16 samples. A boundary",
                                    filled("u x 4 B x {} = {} x 4 B x {}", {batch, m.unit(), batch}),
                                    m.unit() * cost::kFloatBytes * batch, Unit::Bytes);
  derived.stash = working.derive(
      "All that a layer keeps", filled("(20 x {} + 4 x {}) x 4 B x {}", {m.unit(), m.sequence_length, batch}),
      cost::mixer_block_kept(m, cost::Accounting::Autograd) * cost::kFloatBytes * batch, Unit::Bytes);
  derived.forward = working.derive("A layer's forward pass", filled("4 s c (d_s + d_c) x {}", {batch}),
                                   cost::mixer_block_flops(m) * batch, Unit::Flops);
  working.say(
      "Lathe does not compute the last segment again, since the backward pass begins with it: after the forward pass "
      "(L / n - 1) A_b + n A_l live beside the input, and L - n layers are computed again. A checkpoint also keeps the "
      "state of LibTorch's random generator, so that dropout falls the same way again.");
  derived.generator =
      working.derive("That state, of a Mersenne twister", "as LibTorch gives it",
                     static_cast<Amount>(at::detail::getDefaultCPUGenerator().get_state().nbytes()), Unit::Bytes);
  return derived;
}

// L - n forward passes, less at most the last product of each segment: nothing needs its result again.
void claim_recomputed(Working& working, const std::string& text, Amount layers, double n) {
  const Amount last = cost::channel_mixing_flops(kDeep) / 2 / cost::mixer_block_flops(kDeep);
  const Amount most = kDeep.num_blocks - n, least = most - (kDeep.num_blocks / n - 1) * last;
  working.claim(text, short_number(least) + " to " + short_number(most), short_number(layers),
                layers >= least * (1 - 1e-9) && layers <= most);
}

void measure_segments(Working& working, const DerivedRun& derived) {
  const SmallMixer model(kDeep, "2c");
  const Tensor x = drawn({kDeepBatch, 16, 64}, "2c.x");
  const CheckpointedRun plain = run_checkpointed(model, x, {});
  Table table{"24 layers, boundaries every n (times are shown, not judged)",
              "Kept: after the forward pass. Peak: of the whole step, gradients and passing tensors included.",
              {"n", "kept", "peak", "FLOPs of the step", "time"},
              {}};
  report::Chart chart{.id = "memory",
                      .title = "Memory against the length of a segment",
                      .note = "24 layers, 16 samples.",
                      .y_label = "bytes",
                      .x_label = "layers per segment",
                      .bytes = true,
                      .from_zero = true};
  working.answer.names = {"kept after the forward pass", "peak of the step", "peak without checkpoints"};
  using Kind = report::Curve::Kind;
  chart.curves = {{.label = "bytes", .run = 0, .kind = Kind::Points},
                  {.label = "bytes", .run = 1, .kind = Kind::Points},
                  {.label = "none", .run = 2, .kind = Kind::Limit}};
  const auto add_row = [&](const std::string& name, const CheckpointedRun& run) {
    table.rows.push_back({name, amount_text(run.kept, Unit::Bytes), amount_text(run.peak, Unit::Bytes),
                          amount_text(run.flops, Unit::Flops), short_number(1000 * run.seconds) + " ms"});
  };
  add_row("none", plain);
  std::string differing;
  double least = 0, least_peak = 0;
  for (const double n : kSegments) {
    const CheckpointedRun run = run_checkpointed(model, x, {nn::Recompute::Full, static_cast<int64_t>(n)});
    const std::string name = "n = " + amount_text(n);
    if (!all_same_bits(run.gradients, plain.gradients)) differing += " " + name;
    working.claim_equal(name + ": kept after the forward pass", derived.kept(n), run.kept, Unit::Bytes);
    claim_recomputed(working, name + ": computed again, in forward passes of a layer",
                     (run.flops - plain.flops) / derived.forward, n);
    add_row(amount_text(n), run);
    const Amount measures[] = {run.kept, run.peak, plain.peak};
    for (size_t curve = 0; curve < 3; ++curve) {
      chart.curves[curve].series.x.push_back(n);
      chart.curves[curve].series.y.push_back(measures[curve]);
    }
    if (least == 0 || run.peak < least_peak) least_peak = run.peak, least = n;
  }
  working.claim("The gradients of every n are those without checkpoints, bit for bit", "no bit differs",
                differing.empty() ? "none" : "other bits at" + differing, differing.empty());
  working.claim_equal(
      "The peak is lowest at the n that the formula with A_l = 20 A_b says",
      working.derive("The best n of the table for A_l = 20 A_b", "the least of the column", best_segment(20)), least);
  working.answer.tables.push_back(std::move(table));
  working.answer.charts.push_back(std::move(chart));
}

void measure_frozen(Working& working, const DerivedRun& derived) {
  const SmallMixer model(kDeep, "2c");
  for (const auto& [name, parameter] : model.parameters()) parameter.set_requires_grad(false);
  const Tensor x = drawn({kDeepBatch, 16, 64}, "2c.x").requires_grad_();
  const auto flops = [&](const nn::LayerPolicy& policy) {
    return static_cast<Amount>(counted_flops([&] { model.blocks_forward(x, policy).square().sum().backward(); }));
  };
  const Amount plain = flops({}), recomputed = flops({nn::Recompute::Full});
  working.claim_equal("Frozen weights, forward and backward: two products for each weight",
                      2 * kDeep.num_blocks * derived.forward, plain, Unit::Flops);
  claim_recomputed(working, "... computed again at n = 1, in forward passes of a layer: towards 3/2 in all",
                   (recomputed - plain) / derived.forward, 1);
}

Answer answer_checkpointing(const Settings& settings) {
  Working working(settings);
  derive_checkpointing(working);
  working.answer.in_short =
      "It keeps the activations at some boundaries only and computes the others again in the backward pass: much less "
      "memory for one more forward pass. A boundary per layer is best where a layer keeps many times a boundary, as "
      "here; every sqrt(L) layers where it keeps about one.";
  const DerivedRun derived = derive_run(working);
  working.answer.tables.push_back(exam_table());
  measure_segments(working, derived);
  measure_frozen(working, derived);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion2c;
const Question kQuestion2c = {"2c", "Gradient checkpointing",
                              "What does gradient (activation) checkpointing do, what does it cost, and when is it "
                              "worth it? How often should a network of L layers have a boundary?",
                              answer_checkpointing};

}  // namespace lathe::app::practice
