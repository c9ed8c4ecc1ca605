// Question 2c: gradient checkpointing.
#include <ATen/ops/tanh.h>

#include <algorithm>
#include <cmath>

#include "lathe/nn/checkpoint.h"
#include "practice/mixer.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr cost::MixerSizes kDeep{
    .sequence_length = 16, .width = 64, .tokens_hidden_size = 64, .channels_hidden_size = 256, .num_blocks = 24};
constexpr int64_t kDeepBatch = 16;
const std::vector<int64_t> kSegments = {1, 2, 3, 4, 6, 8, 12, 24};

Table exam_table() {
  const Amount unit = kExamBatch * kExamMixer.unit() * cost::kFloatBytes;
  const auto checkpointed_text = [&](int64_t n, Amount stash) {
    return amount_text(cost::checkpointed(kExamMixer.num_blocks, static_cast<Amount>(n), unit, stash * unit),
                       Unit::Bytes);
  };
  Table table{
      "Boundaries every n layers: what lives at the worst moment, (24 / n) A_b + n A_l",
      "The exam's Mixer, batch 1024, float32: A_b = " + amount_text(unit, Unit::Bytes) +
          ". Beside it a network whose layer keeps no more than a boundary: only there is the square root of the "
          "depth best.",
      {"n", "A_l = 20 A_b (the Mixer)", "A_l = A_b"},
      {}};
  for (const int64_t n : kSegments)
    table.rows.push_back({std::to_string(n), checkpointed_text(n, 20), checkpointed_text(n, 1)});
  return table;
}

// The n of the table that needs least memory when a layer keeps `stash` boundaries.
Amount best_segment(Amount stash) {
  const auto needed = [stash](int64_t n) {
    return cost::checkpointed(kExamMixer.num_blocks, static_cast<Amount>(n), 1, stash);
  };
  return static_cast<Amount>(*std::min_element(kSegments.begin(), kSegments.end(),
                                               [&](int64_t a, int64_t b) { return needed(a) < needed(b); }));
}

// The FLOPs of a step that recomputes everything, over those of one that does not.
struct DerivedCost {
  Amount trained, frozen;
};

DerivedCost derive_checkpointing(Working& working) {
  const double layers = kExamMixer.num_blocks;
  working.say(
      "Without checkpointing each operation keeps what its gradient needs until the backward pass comes to it. With "
      "it, only the activations at some boundaries are kept; the backward pass runs the forward pass of a segment "
      "again from its boundary, uses what it leaves, and frees it.");
  working.say(
      "With L layers, boundaries every n of them, A_b bytes for a boundary and A_l for all that a layer keeps, the "
      "worst moment holds the boundaries and one segment: (L / n) A_b + n A_l. The price is one more forward pass.");
  const Amount unit = kExamBatch * kExamMixer.unit() * cost::kFloatBytes;
  for (const int64_t n : kSegments) {
    const auto per_segment = static_cast<Amount>(n);
    const Amount needed =
        working.derive(filled("The exam's Mixer, batch 1024, n = {}: A_l = 20 A_b", {per_segment}),
                       filled("(24 / {}) x {} B + {} x 20 x {} B", {per_segment, unit, per_segment, unit}),
                       cost::checkpointed(layers, per_segment, unit, 20 * unit), Unit::Bytes);
    working.claim_equal(
        filled("The exam at n = {} as the planner counts it, with the input, without statistics and generator's states",
               {per_segment}),
        needed, planned_exam_checkpoints(n), Unit::Bytes);
  }
  const Amount width = kExamMixer.width;
  const cost::TokenFlops full = cost::full_finetuning_flops(width, width),
                         lora = cost::lora_finetuning_flops(width, width, 0);
  DerivedCost derived{};
  derived.trained = working.derive("FLOPs with all weights trained: forward 1, backward 2, recomputed 1",
                                   "(1 + 2 + 1) / (1 + 2)", (full.total() + full.forward) / full.total());
  derived.frozen =
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
  return derived;
}

struct CheckpointedRun {
  BlocksMemory memory;
  Amount flops = 0;
  double seconds = 0;
  std::vector<Tensor> gradients = {};
};

// n = 0: without checkpoints.
CheckpointedRun run_checkpointed(const SmallMixer& model, const Tensor& x, int64_t n) {
  CheckpointedRun run{.memory = measured_memory(model, x, kDeepBatch, n)};
  const Tensor grad = drawn(x.sizes(), "2c.gradient");
  const auto step = [&] { model.blocks_forward(x, policy_of(n)).backward(grad); };
  run.flops = static_cast<Amount>(counted_flops(step));
  run.gradients = gradients_of(model.parameters());
  run.seconds = seconds_of(step);
  forget_gradients(model.parameters());
  return run;
}

bool all_same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same_bits(a[i], b[i])) return false;
  }
  return a.size() == b.size();
}

// Of the batch: bytes of what a checkpoint keeps and of all that a layer keeps; operations of a layer's forward pass.
struct DerivedRun {
  Amount boundary, stash, forward;

  // After the forward pass: the formula, less the first boundary, the input, which is the caller's.
  Amount kept(double n) const { return cost::checkpointed(kDeep.num_blocks, n, boundary, stash) - boundary; }
  // Computed again: L - n layers. The last segment is not: the backward pass begins with it.
  Amount again(double n) const { return (kDeep.num_blocks - n) * forward; }
};

DerivedRun derive_run(Working& working) {
  const auto batch = static_cast<Amount>(kDeepBatch);
  const cost::MixerSizes& m = kDeep;
  DerivedRun derived{};
  derived.boundary = working.derive(
      "The run: 24 layers, s = 16, c = 64, 16 samples. A boundary, with the state of LibTorch's random generator, "
      "which a checkpoint keeps so that dropout falls the same way again",
      filled("u x 4 B x {} + {} B = {} x 4 B x {} + {} B",
             {batch, generator_bytes(), m.unit(), batch, generator_bytes()}),
      m.unit() * cost::kFloatBytes * batch + generator_bytes(), Unit::Bytes);
  derived.stash = working.derive(
      "All that a layer keeps", filled("(20 x {} + 4 x {}) x 4 B x {}", {m.unit(), m.sequence_length, batch}),
      cost::mixer_block_kept(m, cost::Accounting::Autograd) * cost::kFloatBytes * batch, Unit::Bytes);
  derived.forward = working.derive("A layer's forward pass", filled("4 s c (d_s + d_c) x {}", {batch}),
                                   cost::mixer_block_flops(m) * batch, Unit::Flops);
  working.say(
      "After the forward pass (L / n) A_b + n A_l live, the input counted as the first boundary. Lathe does not "
      "compute the last segment again, since the backward pass begins with it: L - n layers are. The peak of the whole "
      "step also holds gradients and what passes; it is expected where the planner has it, which follows the same step "
      "operator by operator, to within one bias's gradient, which is there before the recomputation.");
  return derived;
}

// Of a step. `again`: one region around all blocks and a tanh, which needs its own output, so that every product runs
// for a second time.
Amount step_flops(const SmallMixer& model, const Tensor& x, bool again) {
  const auto forward = [&model](const std::vector<Tensor>& in) { return at::tanh(model.blocks_forward(in[0])); };
  return static_cast<Amount>(counted_flops(
      [&] { (again ? nn::checkpoint(forward, {x}) : forward({x})).backward(drawn(x.sizes(), "2c.gradient")); }));
}

void measure_segments(Working& working, const DerivedRun& derived, Amount full) {
  const SmallMixer model(kDeep, "2c");
  const Tensor x = drawn({kDeepBatch, 16, 64}, "2c.x");
  const CheckpointedRun plain = run_checkpointed(model, x, 0);
  working.claim_equal("Without checkpoints, forward and backward: three products for each weight",
                      3 * kDeep.num_blocks * derived.forward, plain.flops, Unit::Flops);
  working.claim_close("Everything computed again: FLOPs of the step, times those without checkpoints", full,
                      step_flops(model, x, /*again=*/true) / plain.flops, 1e-12);
  Table table{"24 layers, boundaries every n (times are shown, not judged)",
              "Kept: after the forward pass. Peak: of the whole step, gradients and passing tensors included.",
              {"n", "kept", "peak", "FLOPs of the step, times those without", "time"},
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
    table.rows.push_back({name, amount_text(run.memory.kept, Unit::Bytes), amount_text(run.memory.peak, Unit::Bytes),
                          short_number(run.flops / plain.flops), short_number(1000 * run.seconds) + " ms"});
  };
  add_row("none", plain);
  const Amount bias_gradient = kDeep.width * cost::kFloatBytes;
  std::string differing;
  int64_t least = 0;
  Amount least_peak = 0;
  for (const int64_t n : kSegments) {
    const CheckpointedRun run = run_checkpointed(model, x, n);
    const std::string name = "n = " + amount_text(n);
    if (!all_same_bits(run.gradients, plain.gradients)) differing += " " + name;
    working.claim_equal(name + ": kept after the forward pass", derived.kept(n), run.memory.kept, Unit::Bytes);
    const Amount peak = derive_peak(working, "Peak of the step at " + name,
                                    planned_memory(kDeep, kDeepBatch, kDeepBatch, planned_policy_of(n)));
    // Half a byte for the rounding of the share.
    working.claim_close(name + ": peak of the step", peak, run.memory.peak, (bias_gradient + 0.5) / peak, Unit::Bytes);
    if (static_cast<Amount>(n) < kDeep.num_blocks)
      working.claim_equal(name + ": computed again", derived.again(n), run.flops - plain.flops, Unit::Flops);
    add_row(amount_text(n), run);
    const Amount measures[] = {run.memory.kept, run.memory.peak, plain.memory.peak};
    for (size_t curve = 0; curve < 3; ++curve) {
      chart.curves[curve].series.x.push_back(static_cast<double>(n));
      chart.curves[curve].series.y.push_back(measures[curve]);
    }
    if (least == 0 || run.memory.peak < least_peak) least_peak = run.memory.peak, least = n;
  }
  working.claim("The gradients of every n are those without checkpoints, bit for bit", "no bit differs",
                differing.empty() ? "none" : "other bits at" + differing, differing.empty());
  working.claim_equal(
      "The peak is lowest at the n that the formula with A_l = 20 A_b says",
      working.derive("The best n of the table for A_l = 20 A_b", "the least of the column", best_segment(20)),
      static_cast<Amount>(least));
  working.answer.tables.push_back(std::move(table));
  working.answer.charts.push_back(std::move(chart));
}

void measure_frozen(Working& working, const DerivedRun& derived, Amount full) {
  const Amount last = working.derive(
      "With frozen weights no product keeps its input, so a recomputation is done before a layer's last one",
      filled("2 s c d_c x {}", {static_cast<Amount>(kDeepBatch)}),
      cost::channel_mixing_flops(kDeep) / 2 * static_cast<Amount>(kDeepBatch), Unit::Flops);
  const SmallMixer model(kDeep, "2c");
  for (const auto& [name, parameter] : model.parameters()) parameter.set_requires_grad(false);
  const Tensor x = drawn({kDeepBatch, 16, 64}, "2c.x").requires_grad_();
  const Amount plain = step_flops(model, x, /*again=*/false);
  const auto checkpointed = static_cast<Amount>(
      counted_flops([&] { model.blocks_forward(x, policy_of(1)).backward(drawn(x.sizes(), "2c.gradient")); }));
  working.claim_equal("Frozen weights, forward and backward: two products for each weight",
                      2 * kDeep.num_blocks * derived.forward, plain, Unit::Flops);
  working.claim_equal("... with a boundary at every layer: computed again",
                      derived.again(1) - (kDeep.num_blocks - 1) * last, checkpointed - plain, Unit::Flops);
  working.claim_close("... everything computed again: FLOPs of the step, times those without checkpoints", full,
                      step_flops(model, x, /*again=*/true) / plain, 1e-12);
}

Answer answer_checkpointing(const Settings& settings) {
  Working working(settings);
  const DerivedCost cost = derive_checkpointing(working);
  working.answer.in_short =
      "It keeps the activations at some boundaries only and computes the others again in the backward pass: much less "
      "memory for one more forward pass. A boundary per layer is best where a layer keeps many times a boundary, as "
      "here; every sqrt(L) layers where it keeps about one.";
  const DerivedRun derived = derive_run(working);
  working.answer.tables.push_back(exam_table());
  measure_segments(working, derived, cost.trained);
  measure_frozen(working, derived, cost.frozen);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion2c;
const Question kQuestion2c = {"2c", "Gradient checkpointing",
                              "What does gradient (activation) checkpointing do, what does it cost, and when is it "
                              "worth it? How often should a network of L layers have a boundary?",
                              answer_checkpointing};

}  // namespace lathe::app::practice
