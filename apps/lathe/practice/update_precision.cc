// Question 4c: why bfloat16 training keeps a float32 copy of the weights and QLoRA needs none.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <limits>

#include "lathe/cost/ops.h"
#include "lathe/nn/nf4.h"
#include "lathe/optim/adam.h"
#include "practice/lora.h"
#include "practice/reference.h"
#include "practice/training_bytes.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr int64_t kPlainWidth = 64, kPlainSteps = 1000;
constexpr double kSmallRate = 1e-5, kLeastWeight = 0.01;
const double kUlp = std::numeric_limits<c10::BFloat16>::epsilon();  // 2^-7
constexpr int64_t kBlock = 64, kScaleBlock = 256;                   // of NF4: weights per scale, scales per scale

// How one weight matrix is kept while it trains.
enum class Keeping { Float32, BFloat16, Master };

// Least squares towards weights that lie 0.005 away.
struct PlainTask {
  Tensor start, x, target;  // start: bfloat16

  PlainTask() {
    const Tensor noise = drawn({kPlainWidth, kPlainWidth}, "4c.weight") * 0.1;
    start = (noise + noise.sign() * (kLeastWeight * 1.01)).to(at::kBFloat16);
    x = drawn({kPlainWidth, kPlainWidth}, "4c.x");
    target = x.matmul((start.to(at::kFloat) + noise.sign() * 0.005).t());
  }
};

struct PrecisionRun {
  std::vector<double> losses;
  Tensor weight;    // at the end, as it is kept
  Tensor gradient;  // of the reference: of the last step

  double fall() const { return losses.back() / losses.front(); }
  // Elements of the bfloat16 weights that the products see, or would.
  int64_t moved(const Tensor& start) const {
    return weight.to(at::kFloat).to(at::kBFloat16).ne(start).sum().item<int64_t>();
  }
};

// Half the distance from a bfloat16 number to its neighbour away from zero (step 1) or towards it (-1).
Tensor half_distance(const Tensor& weight, int64_t step) {
  const Tensor neighbour = (weight.view(at::kShort) + step).to(at::kShort).view(at::kBFloat16);
  return (neighbour.to(at::kDouble) - weight.to(at::kDouble)).abs() / 2;
}

// With AdamW at a learning rate of 1e-5 and no weight decay.
PrecisionRun train_kept(const PlainTask& task, Keeping keeping) {
  nn::Linear linear(kPlainWidth, kPlainWidth, /*bias=*/false);
  linear->weight.set_data(task.start.to(at::kFloat));
  if (keeping == Keeping::Master) linear->set_precision({.storage = at::kBFloat16});
  optim::AdamW optimizer(optim::with_weight_decay({{"weight", linear->weight}}, 0));
  PrecisionRun run;
  for (int64_t step = 0; step < kPlainSteps; ++step) {
    const Tensor loss = (linear->forward(task.x) - task.target).square().mean();
    run.losses.push_back(loss.item<double>());
    loss.backward();
    optimizer.step(kSmallRate);
    optimizer.zero_grad();
    // A weight that is kept in bfloat16 is rounded after every update; the moments stay float32.
    if (keeping == Keeping::BFloat16) linear->weight.set_data(linear->weight.to(at::kBFloat16).to(at::kFloat));
  }
  run.weight = linear->weight.detach();
  return run;
}

PrecisionRun reference_kept(const PlainTask& task, bool rounds_base) {
  ReferenceLayer layer{.w = task.start.to(at::kDouble), .trains_base = true, .rounds_base = rounds_base};
  PrecisionRun run;
  run.losses = train_reference(layer, task.x.to(at::kDouble), mean_square_to(task.target.to(at::kDouble)), kSmallRate,
                               kPlainSteps);
  run.weight = layer.w;
  run.gradient = layer.gradients[0];
  return run;
}

// The weights that have one step or less to where they round to their other neighbour, and how far that lies.
struct Undecided {
  Tensor mask, way;
};

Undecided undecided_of(const Tensor& weight) {
  const Tensor seen = weight.to(at::kFloat).to(at::kBFloat16), off = weight - seen.to(at::kDouble);
  const Tensor outwards = off * seen.to(at::kDouble) > 0;
  const Tensor half = at::where(outwards, half_distance(seen, 1), half_distance(seen, -1));
  return {half - off.abs() <= kSmallRate, 2 * half * off.sign()};
}

// Two deviations of the last loss, as a share, if each of these falls on either side: by the loss's Taylor series.
double undecided_share(const PlainTask& task, const PrecisionRun& expected) {
  const Undecided undecided = undecided_of(expected.weight);
  const Tensor curvature = task.x.to(at::kDouble).square().sum(0) / static_cast<double>(task.target.numel());
  const Tensor change = (expected.gradient + undecided.way * curvature) * undecided.way * undecided.mask;
  return 2 * change.norm().item<double>() / expected.losses.back();
}

struct RoundedAway {
  double least = 0, most = 0;  // half the distance to a neighbour, as a share of the weight
};

// Over all 128 significands of bfloat16 and both directions.
RoundedAway rounded_away() {
  constexpr int64_t kOne = 0x3F80;  // the bits of 1
  const Tensor number = at::arange(kOne, kOne + 128, at::kShort).view(at::kBFloat16), weight = number.to(at::kDouble);
  const Tensor up = half_distance(number, 1) / weight, down = half_distance(number, -1) / weight;
  return {std::min(up.min().item<double>(), down.min().item<double>()),
          std::max(up.max().item<double>(), down.max().item<double>())};
}

struct QloraRun {
  std::vector<double> losses, expected;
  bool same_base = true;
  Amount base_bytes = 0;
};

Amount bytes_of(const std::vector<Tensor>& tensors) {
  Amount bytes = 0;
  for (const Tensor& tensor : tensors) bytes += static_cast<Amount>(tensor.nbytes());
  return bytes;
}

constexpr int64_t kQloraWidth = 1024, kQloraOutputs = 256, kQloraSteps = 60;
constexpr double kQloraRate = 2e-3;

QloraRun train_qlora() {
  nn::NF4Linear base(kQloraWidth, kQloraOutputs, /*bias=*/false, nn::NF4LinearOptions().double_quant(true));
  base->quantize(make_linear(kQloraWidth, kQloraOutputs, "4c.base")->weight.detach());
  const nn::LoRALinear lora = make_lora(base.ptr(), nn::LoRALinearOptions(8, 16), "4c.lora");
  std::vector<Tensor> before;
  for (const Tensor& buffer : base->buffers()) before.push_back(buffer.clone());
  const Tensor x = drawn({128, kQloraWidth}, "4c.rows");
  const Tensor change = drawn({kQloraOutputs, 4}, "4c.left").matmul(drawn({4, kQloraWidth}, "4c.right")) / kQloraWidth;
  ReferenceLayer reference{.w = base->dense_weight().to(at::kDouble),
                           .a = lora->lora_A->weight.detach().to(at::kDouble),
                           .b = lora->lora_B->weight.detach().to(at::kDouble),
                           .scaling = lora->scaling()};
  const Tensor target = x.matmul((base->dense_weight() + change).t());
  QloraRun run;
  run.expected =
      train_reference(reference, x.to(at::kDouble), mean_square_to(target.to(at::kDouble)), kQloraRate, kQloraSteps);
  optim::AdamW optimizer({{"A", lora->lora_A->weight}, {"B", lora->lora_B->weight}});
  for (int64_t step = 0; step < kQloraSteps; ++step) {
    const Tensor loss = (nn::LoRALinear(lora)->forward(x) - target).square().mean();
    run.losses.push_back(loss.item<double>());
    loss.backward();
    optimizer.step(kQloraRate);
    optimizer.zero_grad();
  }
  const std::vector<Tensor> after = base->buffers();
  for (size_t i = 0; i < after.size(); ++i) run.same_base = run.same_base && same_bits(after[i], before[i]);
  run.base_bytes = bytes_of(after);
  return run;
}

struct DerivedPrecision {
  Amount least, most, at_least, trained, per_parameter, four_bit;
};

DerivedPrecision derive_precision(Working& working) {
  DerivedPrecision derived{};
  working.say(
      "bfloat16 has 8 significant bits: in [1, 2) neighbours are 2^-7 apart, below 1 half as far. Adding rounds to the "
      "nearest, so an update of less than half that distance leaves the weight as it was, in every step anew: small "
      "updates never add up.");
  derived.least =
      working.derive("The largest update that every weight rounds away, as a share of it: that of 1, downwards",
                     filled("2^-8 / 2 = 1 / {}", {4 / kUlp}), kUlp / 2 / 2);
  derived.most = working.derive("The largest that any weight rounds away: that of 1, upwards",
                                filled("2^-7 / 2 = 1 / {}", {2 / kUlp}), kUlp / 2);
  derived.at_least = working.derive(
      "Half the distance at |w| = 0.01, where neighbours are 2^-7 x 2^-7 apart; Adam's step is about the learning "
      "rate, 1e-5",
      "2^-14 / 2", kUlp * std::exp2(std::floor(std::log2(kLeastWeight))) / 2);
  working.say(
      "So what is trained is kept in float32 (24 significant bits), updated there, and rounded to bfloat16 for the "
      "products only: the master copy. The products need no more, because their errors are random and do not "
      "accumulate over steps.");
  const Amount bytes = cost::kFloatBytes;
  derived.trained = working.derive("Bytes per parameter: float32 weight, gradient and Adam's two moments",
                                   filled("{} + {} + 2 x {}", {bytes, bytes, bytes}), bytes + bytes + 2 * bytes);
  const Amount half = sizeof(c10::BFloat16);
  working.say(
      "Lathe's bfloat16 training keeps just these: the float32 weight is rounded for each product. Where a bfloat16 "
      "copy "
      "of the weights and bfloat16 gradients stay beside the master, it is as much: " +
      filled("{} + {} + {} + 2 x {} = {}.", {half, half, bytes, bytes, 2 * half + 3 * bytes}));
  working.say(
      "In QLoRA the base is never updated. It is only read: decoded from four bits for each product, forward and "
      "backward, to the same values every time. Its rounding error is made once and stays; nothing has to add up in "
      "it. What is updated, A and B, is small and kept in float32. A float32 copy of the base would serve nobody.");
  const Amount block = kBlock, matrix = kQloraWidth * kQloraOutputs;
  derived.per_parameter =
      working.derive("Bytes per parameter in NF4 with quantised scales: 4 bits, a byte per 64, four bytes per 64 x 256",
                     filled("1/2 + 1/{} + {} / ({} x {})", {block, bytes, block, kScaleBlock}),
                     0.5 + 1 / block + bytes / (block * kScaleBlock));
  derived.four_bit = working.derive("A matrix of 256 by 1024, the two tables of codes included",
                                    filled("{} / 2 + {} / {} + 4 x {} / ({} x {}) + 4 x 16 + 4 x 256",
                                           {matrix, matrix, block, matrix, block, kScaleBlock}),
                                    cost::four_bit_bytes(matrix, block, true), Unit::Bytes);
  return derived;
}

// Of them, those for which it decides whether they have moved at all.
Amount undecided_moves(const PlainTask& task, const PrecisionRun& expected) {
  const Undecided undecided = undecided_of(expected.weight);
  const Tensor seen = expected.weight.to(at::kFloat).to(at::kBFloat16).to(at::kDouble),
               start = task.start.to(at::kDouble);
  const Tensor decides = (seen == start).logical_or(seen + undecided.way == start);
  return static_cast<Amount>(decides.logical_and(undecided.mask).sum().item<int64_t>());
}

// How the training of kept weights goes, beside the formulas in float64.
void claim_kept(Working& working, const std::string& name, const PrecisionRun& run, const PrecisionRun& expected,
                const PlainTask& task, double tolerance) {
  const std::string loss = name + ": last loss over first", moved = name + ": elements whose bfloat16 value moved";
  working.claim_close(loss, working.derive(loss, "Adam by its formulas, in float64", expected.fall()), run.fall(),
                      tolerance);
  // Those within a step of a boundary may fall on either side.
  const auto count = static_cast<Amount>(expected.moved(task.start));
  working.claim_close(moved, working.derive(moved, "Adam by its formulas, in float64", count),
                      static_cast<Amount>(run.moved(task.start)), undecided_moves(task, expected) / count);
}

void measure_precision(Working& working, const DerivedPrecision& derived) {
  const RoundedAway limits = rounded_away();
  working.claim_equal("Over all significands, the least half distance to a neighbour, as a share", derived.least,
                      limits.least);
  working.claim_equal("... and the largest", derived.most, limits.most);
  const PlainTask task;
  const PrecisionRun plain = train_kept(task, Keeping::BFloat16), twin = train_kept(task, Keeping::Float32),
                     master = train_kept(task, Keeping::Master);
  const std::string all = " of " + std::to_string(kPlainWidth * kPlainWidth);
  const PrecisionRun expected_twin = reference_kept(task, false), expected_master = reference_kept(task, true);
  working.claim("bfloat16 weights, |w| >= 0.01, AdamW at 1e-5 without decay, " +
                    amount_text(static_cast<Amount>(kPlainSteps)) + " steps: elements that moved",
                "0" + all, std::to_string(plain.moved(task.start)) + all, plain.moved(task.start) == 0);
  working.claim_equal("Over its weights, the least half distance to a neighbour: above a step of 1e-5",
                      derived.at_least,
                      at::minimum(half_distance(task.start, 1), half_distance(task.start, -1)).min().item<double>());
  claim_kept(working, "Their float32 twins", twin, expected_twin, task,
             training_rounding(kPlainSteps, expected_twin.losses.back()));
  claim_kept(working, "Lathe's bfloat16 storage, a float32 master that each product rounds", master, expected_master,
             task, undecided_share(task, expected_master));
  for (const char* dtype : {"float32", "bfloat16"}) {
    const TrainingBytes bytes = training_bytes(dtype);
    const std::string name = std::string("A Mixer trained in ") + dtype;
    working.claim_equal(name + ": bytes that live between two micro-batches, as the planner has them",
                        bytes.parameters * derived.trained, bytes.planned, Unit::Bytes);
    working.claim_equal("... counted in the allocator in a real step", bytes.parameters * derived.trained,
                        bytes.counted, Unit::Bytes);
  }
  const QloraRun qlora = train_qlora();
  working.claim_equal("Bytes of the NF4 base, counted", derived.four_bit, qlora.base_bytes, Unit::Bytes);
  working.claim_equal("... per parameter, the two tables of codes aside", derived.per_parameter,
                      (qlora.base_bytes - cost::kFloatBytes * (16 + 256)) / (kQloraWidth * kQloraOutputs));
  working.claim("QLoRA: after 60 steps every byte of the base is what it was", "no byte differs",
                qlora.same_base ? "none" : "some", qlora.same_base);
  const std::string learned = "last of 60 losses over the first";
  working.claim_close("... and it has learned: " + learned,
                      working.derive("QLoRA: " + learned, "Adam by its formulas over the decoded base, in float64",
                                     qlora.expected.back() / qlora.expected.front()),
                      qlora.losses.back() / qlora.losses.front(),
                      training_rounding(kQloraSteps, qlora.expected.back()));
  report::Chart chart{.id = "loss",
                      .title = "The same 1000 steps, weights kept in three ways",
                      .note = "AdamW, learning rate 1e-5.",
                      .y_label = "loss",
                      .from_zero = true};
  working.answer.names = {"bfloat16", "float32", "bfloat16 with a float32 master"};
  const PrecisionRun* runs[] = {&plain, &twin, &master};
  for (size_t i = 0; i < 3; ++i) {
    report::Series series;
    for (size_t step = 0; step < runs[i]->losses.size(); step += 10) {
      series.x.push_back(static_cast<double>(step));
      series.y.push_back(runs[i]->losses[step]);
    }
    chart.curves.push_back({.label = "loss", .run = i, .series = std::move(series)});
  }
  working.answer.charts.push_back(std::move(chart));
}

Answer answer_update_precision(const Settings& settings) {
  Working working(settings);
  const DerivedPrecision derived = derive_precision(working);
  working.answer.in_short = "In bfloat16 an update of less than about 1/" + amount_text(1 / derived.least) +
                            " of a weight is rounded away, so small steps never add up: they are added to a float32 "
                            "copy. QLoRA's base is never updated, only read; what is updated, A and B, is small and "
                            "float32. Bytes per parameter: " +
                            amount_text(derived.trained) + " against " + short_number(derived.per_parameter) + ".";
  measure_precision(working, derived);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion4c;
const Question kQuestion4c = {"4c", "One copy or two",
                              "Training in bfloat16 keeps a second copy of the weights in float32. Why? QLoRA keeps "
                              "its base model in one copy, in NF4. Why is that enough?",
                              answer_update_precision};

}  // namespace lathe::app::practice
