// Question 1b: what a Mixer's forward pass leaves in memory.
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "practice/mixer.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

using cost::Accounting;

const std::vector<Amount> kExamMicroBatches = {1, 8, 32, 64, 128, 256, 1024};

// Of the whole exam under one accounting.
Amount exam_bytes(Accounting accounting) {
  return kExamBatch * kExamMixer.num_blocks * cost::kFloatBytes * cost::mixer_block_kept(kExamMixer, accounting);
}

std::string units_text(Amount elements) {
  const Amount unit = kExamMixer.unit();
  if (elements < unit) return amount_text(elements / kExamMixer.sequence_length) + " s";
  return amount_text(elements / unit) + " u";
}

Table tensors_of_a_block() {
  Table table{"Every tensor of a layer",
              "Two accountings. The textbook keeps the output of every operation. Autograd keeps what an operation "
              "needs for its gradient: a sum needs nothing, so the two products' results that are only added are not "
              "kept; LayerNorm needs its input and two statistics per patch. X is counted once, as this layer's input.",
              {"tensor", "elements per sample", "textbook", "autograd", "saved by"},
              {}};
  for (const cost::Intermediate& tensor : cost::mixer_block_intermediates(kExamMixer))
    table.rows.push_back({tensor.name, units_text(tensor.elements), tensor.output ? "kept" : "-",
                          tensor.saved_by.empty() ? "-" : "kept",
                          tensor.saved_by.empty() ? "nobody" : tensor.saved_by});
  return table;
}

Table less_memory() {
  Table table{
      "How to need less",
      "u = s c x 4 B x 1024 samples = " + amount_text(kExamBatch * kExamMixer.unit() * cost::kFloatBytes, Unit::Bytes) +
          ". Accumulation: the same batch in micro-batches of m samples (question 2a). Recomputing GELU and LayerNorm "
          "costs less than 1 % of the FLOPs; recomputing whole layers a third more (question 2c).",
      {"way", "activations of 24 layers"},
      {}};
  for (const Amount m : kExamMicroBatches)
    table.rows.push_back({filled("micro-batches of {}", {m}),
                          amount_text(exam_bytes(Accounting::Autograd) * m / kExamBatch, Unit::Bytes)});
  table.rows.push_back(
      {"GELU recomputed: 12 u a layer", amount_text(exam_bytes(Accounting::WithoutGelu), Unit::Bytes)});
  table.rows.push_back(
      {"GELU and LayerNorm recomputed: 10 u", amount_text(exam_bytes(Accounting::WithoutGeluAndNorm), Unit::Bytes)});
  const Amount unit = kExamBatch * kExamMixer.unit() * cost::kFloatBytes;
  table.rows.push_back({"every layer recomputed: 24 boundaries and one layer's 20 u",
                        amount_text(cost::checkpointed(kExamMixer.num_blocks, 1, unit, 20 * unit), Unit::Bytes)});
  return table;
}

struct DerivedBytes {
  Amount unit;                                                    // elements
  Amount textbook, autograd, hidden, without_gelu, without_both;  // of one sample in one layer
  Amount recomputed;                                              // of one sample in a stack of three
  // Of the exam: of 1024 samples in one layer, in 24, and in MiB.
  Amount textbook_layer, textbook_exam, textbook_mib, autograd_layer, autograd_exam, hidden_exam;
  Amount without_gelu_exam, without_both_exam, checkpointed_exam;
};

DerivedBytes derive_bytes(Working& working) {
  const cost::MixerSizes& m = kExamMixer;
  const auto kept = [&](Accounting accounting) { return cost::mixer_block_kept(m, accounting); };
  const auto exam = [&](const char* text, Accounting accounting, const char* elements) {
    return working.derive(
        text, filled(elements, {m.unit(), m.sequence_length}) + filled(" x 4 B x {} x {}", {kExamBatch, m.num_blocks}),
        exam_bytes(accounting), Unit::Bytes);
  };
  const Amount layer_samples = kExamBatch * cost::kFloatBytes, unit = m.unit();
  DerivedBytes derived{};
  derived.unit = working.derive(
      "The unit: what passes between two layers, per sample. The hidden tensors have c d_s = s d_c = 4 u",
      filled("u = s c = {} x {}", {m.sequence_length, m.width}), unit);
  derived.textbook_layer =
      working.derive("Textbook, every operation's output kept: 22 u per sample and layer (the table lists them)",
                     filled("{} x {} x 4 B x {}", {kept(Accounting::Textbook) / unit, unit, kExamBatch}),
                     layer_samples * kept(Accounting::Textbook), Unit::Bytes);
  derived.textbook_exam =
      working.derive("... in 24 layers", filled("{} x {}", {m.num_blocks, layer_samples * kept(Accounting::Textbook)}),
                     exam_bytes(Accounting::Textbook), Unit::Bytes);
  derived.textbook_mib = working.derive("... in MiB", filled("{} / 2^20", {exam_bytes(Accounting::Textbook)}),
                                        exam_bytes(Accounting::Textbook) / (1 << 20));
  derived.autograd_layer =
      working.derive("Autograd, what the operations need for their gradients: 20 u + 4 s per sample and layer",
                     filled("(20 x {} + 4 x {}) x 4 B x {}", {unit, m.sequence_length, kExamBatch}),
                     layer_samples * kept(Accounting::Autograd), Unit::Bytes);
  derived.autograd_exam =
      working.derive("... in 24 layers", filled("{} x {}", {m.num_blocks, layer_samples * kept(Accounting::Autograd)}),
                     exam_bytes(Accounting::Autograd), Unit::Bytes);
  derived.hidden_exam =
      exam("The answer that counts the MLPs' hidden tensors only, 16 u", Accounting::Hidden, "16 x {}");
  derived.without_gelu_exam =
      exam("With the outputs of GELU computed again, 12 u + 4 s", Accounting::WithoutGelu, "(12 x {} + 4 x {})");
  derived.without_both_exam = exam("With those of GELU and LayerNorm computed again, 10 u + 4 s",
                                   Accounting::WithoutGeluAndNorm, "(10 x {} + 4 x {})");
  derived.checkpointed_exam =
      working.derive("With every layer computed again: 24 boundaries of 1 u and one layer's 20 u",
                     filled("(24 + 20) x {} x 4 B x {}", {unit, kExamBatch}),
                     cost::checkpointed(m.num_blocks, 1, layer_samples * unit, 20 * layer_samples * unit), Unit::Bytes);
  derived.autograd = working.derive("One sample in one layer, as autograd keeps it",
                                    filled("(20 x {} + 4 x {}) x 4 B", {unit, m.sequence_length}),
                                    cost::kFloatBytes * kept(Accounting::Autograd), Unit::Bytes);
  derived.textbook = working.derive("... as the textbook counts", filled("22 x {} x 4 B", {unit}),
                                    cost::kFloatBytes * kept(Accounting::Textbook), Unit::Bytes);
  derived.hidden = working.derive("... in hidden tensors", filled("16 x {} x 4 B", {unit}),
                                  cost::kFloatBytes * kept(Accounting::Hidden), Unit::Bytes);
  derived.without_gelu = working.derive(
      "... without the outputs of GELU (they can be computed again), or with ReLU, which saves its output only, and "
      "that is the next product's input: 12 u + 4 s",
      filled("(12 x {} + 4 x {}) x 4 B", {unit, m.sequence_length}), cost::kFloatBytes * kept(Accounting::WithoutGelu),
      Unit::Bytes);
  derived.without_both = working.derive("... without those of GELU and LayerNorm: 10 u + 4 s",
                                        filled("(10 x {} + 4 x {}) x 4 B", {unit, m.sequence_length}),
                                        cost::kFloatBytes * kept(Accounting::WithoutGeluAndNorm), Unit::Bytes);
  const Amount boundary = unit * cost::kFloatBytes + generator_bytes();
  derived.recomputed = working.derive(
      "One sample in three layers, each computed again: 3 boundaries, of which the first is the caller's, and one "
      "layer. A boundary also keeps the state of the random generator",
      filled("2 x (4 B x {} + {} B) + {} B", {unit, generator_bytes(), cost::kFloatBytes * kept(Accounting::Autograd)}),
      cost::checkpointed(3, 1, boundary, cost::kFloatBytes * kept(Accounting::Autograd)) - boundary, Unit::Bytes);
  return derived;
}

struct KeptBytes {
  Amount total = 0;
  std::vector<int64_t> blocks;
};

// What lives after the forward pass. X is the caller's, but Y lives, which is as large: the next layer's X.
KeptBytes kept_after(const std::function<Tensor(const Tensor&)>& forward, int64_t batch) {
  const Tensor x = drawn({batch, 128, 1024}, "1b.x").requires_grad_();
  const ByteMeter meter;
  const Tensor y = forward(x);
  return {static_cast<Amount>(meter.live()), meter.blocks()};
}

// The sizes that autograd's column of the table promises for one sample, Y in the place of X. A statistic of each norm
// is a tensor of its own.
std::vector<int64_t> promised_blocks() {
  std::vector<int64_t> sizes;
  for (const cost::Intermediate& tensor : cost::mixer_block_intermediates(kExamMixer)) {
    if (tensor.saved_by.empty()) continue;
    const bool statistics = tensor.part == cost::Intermediate::Part::Statistics;
    for (int i = 0; i < (statistics ? 2 : 1); ++i)
      sizes.push_back(static_cast<int64_t>(tensor.elements * cost::kFloatBytes) / (statistics ? 2 : 1));
  }
  std::sort(sizes.begin(), sizes.end());
  return sizes;
}

Amount held_outputs(nn::MixerBlockImpl& block) {
  const at::NoGradGuard no_grad;
  const Tensor x = drawn({1, 128, 1024}, "1b.x");
  std::vector<Tensor> outputs;
  const ByteMeter meter;
  plain_block(x, block, PlainActivation::Gelu, [&](const Tensor& y) { outputs.push_back(y); });
  return static_cast<Amount>(meter.live());
}

// What the run has counted, of one sample in one layer: what has no planner, as Lathe does not keep it so.
struct CountedBytes {
  Amount textbook, hidden, without_gelu;
};

// The totals of 24 layers and 1024 samples: by the planner, which follows Lathe's blocks, or by the run's count.
void claim_exam_bytes(Working& working, const DerivedBytes& derived, const CountedBytes& counted) {
  using Kind = recipe::Checkpointing::Kind;
  const auto planned = [](Amount num_blocks, Amount samples, Kind kind) {
    cost::MixerSizes sizes = kExamMixer;
    sizes.num_blocks = num_blocks;
    return planned_memory(sizes, static_cast<int64_t>(samples), static_cast<int64_t>(samples), {kind}).kept;
  };
  const Amount layers = kExamMixer.num_blocks;
  working.claim_equal("The exam's 1024 samples in one layer as the planner follows it", derived.autograd_layer,
                      planned(1, kExamBatch, Kind::None), Unit::Bytes);
  working.claim_equal("... in 24 layers", derived.autograd_exam, planned(layers, kExamBatch, Kind::None), Unit::Bytes);
  for (const Amount m : kExamMicroBatches)
    working.claim_equal(filled("... in micro-batches of {}", {m}), derived.autograd_exam * m / kExamBatch,
                        planned(layers, m, Kind::None), Unit::Bytes);
  working.claim_equal("... GELU and LayerNorm computed again", derived.without_both_exam,
                      planned(layers, kExamBatch, Kind::Elementwise), Unit::Bytes);
  working.claim_equal("... every layer computed again, the input counted, statistics and generator's states not",
                      derived.checkpointed_exam, planned_exam_checkpoints(1), Unit::Bytes);
  working.claim_equal("The textbook's count of the run x 1024 samples", derived.textbook_layer,
                      kExamBatch * counted.textbook, Unit::Bytes);
  working.claim_equal("... x 24 layers", derived.textbook_exam, layers * kExamBatch * counted.textbook, Unit::Bytes);
  working.claim_equal("... in MiB", derived.textbook_mib, layers * kExamBatch * counted.textbook / (1 << 20));
  working.claim_equal("The run's hidden tensors x 1024 samples x 24 layers", derived.hidden_exam,
                      layers * kExamBatch * counted.hidden, Unit::Bytes);
  working.claim_equal("What the run keeps with ReLU x 1024 samples x 24 layers", derived.without_gelu_exam,
                      layers * kExamBatch * counted.without_gelu, Unit::Bytes);
}

void measure_bytes(Working& working, const DerivedBytes& derived) {
  nn::MixerBlock block = make_block(kExamMixer, "1b");
  const auto plain = [&](const Tensor& x) { return plain_block(x, *block); };
  const auto under = [&](nn::Recompute policy) {
    return [&block, policy](const Tensor& x) {
      return nn::run_layers(x, 1, {policy}, [&](int64_t, const Tensor& in) { return block->forward(in); });
    };
  };
  for (const int64_t batch : {1, 2})
    working.claim_equal("LibTorch's operators, " + std::to_string(batch) + (batch == 1 ? " sample" : " samples") +
                            ": the bytes that the forward pass leaves",
                        static_cast<Amount>(batch) * derived.autograd, kept_after(plain, batch).total, Unit::Bytes);
  working.claim_equal("Elements that a block gives the next, one sample", derived.unit,
                      static_cast<Amount>(block->forward(drawn({1, 128, 1024}, "1b.x")).numel()));
  const auto blocks = kept_after(plain, 1).blocks;
  working.claim("... and they are the tensors of the table's autograd column, size by size",
                std::to_string(promised_blocks().size()) + " tensors", std::to_string(blocks.size()) + " tensors",
                blocks == promised_blocks());
  Amount hidden = 0;
  for (const int64_t bytes : blocks) {
    const auto elements = static_cast<Amount>(bytes) / cost::kFloatBytes;
    hidden += elements == kExamMixer.width * kExamMixer.tokens_hidden_size ? static_cast<Amount>(bytes) : 0;
  }
  working.claim_equal("... of which those of 4 u are the hidden tensors", derived.hidden, hidden, Unit::Bytes);
  const Amount outputs = held_outputs(*block);
  working.claim_equal("Every operation's output held, one sample, without autograd: the textbook's count",
                      derived.textbook, outputs, Unit::Bytes);
  const Amount relu =
      kept_after([&](const Tensor& x) { return plain_block(x, *block, PlainActivation::Relu); }, 1).total;
  working.claim_equal("Lathe's MixerBlock, policy none, 2 samples", 2 * derived.autograd,
                      kept_after(under(nn::Recompute::None), 2).total, Unit::Bytes);
  working.claim_equal("LibTorch's operators with ReLU for GELU, 1 sample", derived.without_gelu, relu, Unit::Bytes);
  working.claim_equal("Lathe's MixerBlock, policy elementwise (GELU and LayerNorm again), 2 samples",
                      2 * derived.without_both, kept_after(under(nn::Recompute::Elementwise), 2).total, Unit::Bytes);
  const auto three = [&](const Tensor& x) {
    return nn::run_layers(x, 3, {nn::Recompute::Full}, [&](int64_t, const Tensor& in) { return block->forward(in); });
  };
  working.claim_equal("Lathe's MixerBlock three times, policy full, 1 sample", derived.recomputed,
                      kept_after(three, 1).total, Unit::Bytes);
  claim_exam_bytes(working, derived, {.textbook = outputs, .hidden = hidden, .without_gelu = relu});
}

Answer answer_mixer_memory(const Settings& settings) {
  Working working(settings);
  const DerivedBytes derived = derive_bytes(working);
  working.answer.in_short =
      amount_text(exam_bytes(Accounting::Autograd), Unit::Bytes) + " as autograd keeps them (20 u + 4 s a layer); " +
      amount_text(exam_bytes(Accounting::Textbook), Unit::Bytes) + " if every operation's output is counted (22 u).";
  working.answer.tables = {tensors_of_a_block(), less_memory()};
  measure_bytes(working, derived);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion1b;
const Question kQuestion1b = {"1b", "Activations of a Mixer's forward pass",
                              "The same Mixer and batch, in float32 and without checkpointing: how much memory do the "
                              "activations of one forward pass take that the backward pass will need?",
                              answer_mixer_memory};

}  // namespace lathe::app::practice
