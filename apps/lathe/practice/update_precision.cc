// Question 4c: why bfloat16 training keeps a float32 copy of the weights and QLoRA needs none.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/where.h>

#include <cmath>

#include "lathe/cost/ops.h"
#include "lathe/nn/nf4.h"
#include "lathe/optim/adam.h"
#include "practice/lora.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr int64_t kPlainWidth = 64, kPlainSteps = 1000;
constexpr double kSmallRate = 1e-5, kLeastWeight = 0.01;

// How one weight matrix is kept while it trains.
enum class Keeping { Float32, BFloat16, Master };

struct PrecisionRun {
  std::vector<double> losses;
  int64_t moved = 0;       // elements of the bfloat16 weights that the products see
  int64_t far_enough = 0;  // of the kept weights, those that have gone more than half the way to a neighbour
  double least_half = 0;   // of those ways at the start
};

// Half the distance from a bfloat16 number to its neighbour away from zero (step 1) or towards it (-1).
Tensor half_distance(const Tensor& weight, int64_t step) {
  const Tensor neighbour = (weight.view(at::kShort) + step).to(at::kShort).view(at::kBFloat16);
  return (neighbour.to(at::kDouble) - weight.to(at::kDouble)).abs() / 2;
}

// Least squares towards weights that lie 0.005 away, with AdamW at a learning rate of 1e-5 and no weight decay.
PrecisionRun train_kept(Keeping keeping) {
  const Tensor noise = drawn({kPlainWidth, kPlainWidth}, "4c.weight") * 0.1;
  const Tensor start = (noise + noise.sign() * (kLeastWeight * 1.01)).to(at::kBFloat16);
  nn::Linear linear(kPlainWidth, kPlainWidth, /*bias=*/false);
  linear->weight.set_data(start.to(at::kFloat));
  if (keeping == Keeping::Master) linear->set_precision({.storage = at::kBFloat16});
  const Tensor x = drawn({kPlainWidth, kPlainWidth}, "4c.x");
  const Tensor target = x.matmul((start.to(at::kFloat) + noise.sign() * 0.005).t());
  optim::AdamW optimizer(optim::with_weight_decay({{"weight", linear->weight}}, 0));
  PrecisionRun run;
  for (int64_t step = 0; step < kPlainSteps; ++step) {
    const Tensor loss = (linear->forward(x) - target).square().mean();
    run.losses.push_back(loss.item<double>());
    loss.backward();
    optimizer.step(kSmallRate);
    optimizer.zero_grad();
    // A weight that is kept in bfloat16 is rounded after every update; the moments stay float32.
    if (keeping == Keeping::BFloat16) linear->weight.set_data(linear->weight.to(at::kBFloat16).to(at::kFloat));
  }
  run.moved = linear->weight.to(at::kBFloat16).ne(start).sum().item<int64_t>();
  const Tensor away = half_distance(start, 1), towards = half_distance(start, -1);
  const Tensor change = (linear->weight.detach().to(at::kDouble) - start.to(at::kDouble)) * noise.sign();
  run.far_enough = change.abs().gt(at::where(change > 0, away, towards)).sum().item<int64_t>();
  run.least_half = at::minimum(away, towards).min().item<double>();
  return run;
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
  std::vector<double> losses;
  bool same_base = true;
  Amount base_bytes = 0;
};

Amount bytes_of(const std::vector<Tensor>& tensors) {
  Amount bytes = 0;
  for (const Tensor& tensor : tensors) bytes += static_cast<Amount>(tensor.nbytes());
  return bytes;
}

constexpr int64_t kQloraWidth = 1024, kQloraOutputs = 256;

QloraRun train_qlora() {
  nn::NF4Linear base(kQloraWidth, kQloraOutputs, /*bias=*/false, nn::NF4LinearOptions().double_quant(true));
  base->quantize(make_linear(kQloraWidth, kQloraOutputs, "4c.base")->weight.detach());
  const nn::LoRALinear lora = make_lora(base.ptr(), nn::LoRALinearOptions(8, 16), "4c.lora");
  std::vector<Tensor> before;
  for (const Tensor& buffer : base->buffers()) before.push_back(buffer.clone());
  const Tensor x = drawn({128, kQloraWidth}, "4c.rows");
  const Tensor change = drawn({kQloraOutputs, 4}, "4c.left").matmul(drawn({4, kQloraWidth}, "4c.right")) / kQloraWidth;
  Tensor target;
  {
    const at::NoGradGuard no_grad;
    target = nn::LoRALinear(lora)->forward(x) + x.matmul(change.t());
  }
  optim::AdamW optimizer({{"A", lora->lora_A->weight}, {"B", lora->lora_B->weight}});
  QloraRun run;
  for (int step = 0; step < 60; ++step) {
    const Tensor loss = (nn::LoRALinear(lora)->forward(x) - target).square().mean();
    run.losses.push_back(loss.item<double>());
    loss.backward();
    optimizer.step(2e-3);
    optimizer.zero_grad();
  }
  const std::vector<Tensor> after = base->buffers();
  for (size_t i = 0; i < after.size(); ++i) run.same_base = run.same_base && same_bits(after[i], before[i]);
  run.base_bytes = bytes_of(after);
  return run;
}

// What a trained matrix of a million weights occupies: in float32 itself, its gradient, Adam's two moments; or weight
// and gradient in bfloat16 beside a float32 master with the moments.
Amount trained_bytes_per_parameter(at::ScalarType type) {
  nn::Linear linear = make_linear(1024, 1024, "4c.trained");
  optim::AdamW optimizer(optim::with_weight_decay({{"weight", linear->weight}}, 0));
  const Tensor weight = type == at::kFloat ? linear->weight : linear->weight.detach().to(type).requires_grad_();
  at::linear(drawn({4, 1024}, "4c.few", type), weight).sum().backward();
  linear->weight.mutable_grad() = weight.grad().to(at::kFloat);
  optimizer.step(kSmallRate);
  std::vector<Tensor> tensors = {weight, weight.grad()};
  if (type != at::kFloat) tensors.push_back(linear->weight);
  for (const auto& [name, tensor] : optimizer.state()) {
    if (tensor.dim() == 2) tensors.push_back(tensor);  // not the counter of steps
  }
  return bytes_of(tensors) / static_cast<Amount>(linear->weight.numel());
}

struct DerivedPrecision {
  Amount least, most, at_least, trained, mixed, per_parameter, four_bit;
};

DerivedPrecision derive_precision(Working& working) {
  DerivedPrecision derived{};
  working.say(
      "bfloat16 has 8 significant bits: in [1, 2) neighbours are 2^-7 apart, below 1 half as far. Adding rounds to the "
      "nearest, so an update of less than half that distance leaves the weight as it was, in every step anew: small "
      "updates never add up.");
  derived.least =
      working.derive("The largest update that every weight rounds away, as a share of it: that of 1, downwards",
                     "2^-8 / 2 = 1 / 512", 0x1p-9);
  derived.most =
      working.derive("The largest that any weight rounds away: that of 1, upwards", "2^-7 / 2 = 1 / 256", 0x1p-8);
  derived.at_least = working.derive(
      "Half the distance at |w| = 0.01, where neighbours are 2^-7 x 2^-7 apart; Adam's step is about the learning "
      "rate, 1e-5",
      "2^-14 / 2", 0x1p-15);
  working.say(
      "So what is trained is kept in float32 (24 significant bits), updated there, and rounded to bfloat16 for the "
      "products only: the master copy. The products need no more, because their errors are random and do not "
      "accumulate over steps.");
  derived.trained = working.derive("Bytes per parameter: float32 weight, gradient and two moments", "4 + 4 + 4 + 4",
                                   3 * cost::kFloatBytes + cost::kFloatBytes);
  derived.mixed = working.derive("... or bfloat16 weight and gradient, float32 master and moments", "2 + 2 + 4 + 4 + 4",
                                 2 * cost::bytes_per_element(cost::Storage::BFloat16) + 3 * cost::kFloatBytes);
  working.say(
      "In QLoRA the base is never updated. It is only read: decoded from four bits for each product, forward and "
      "backward, to the same values every time. Its rounding error is made once and stays; nothing has to add up in "
      "it. What is updated, A and B, is small and kept in float32. A float32 copy of the base would serve nobody.");
  derived.per_parameter =
      working.derive("Bytes per parameter in NF4 with quantised scales: 4 bits, a byte per 64, four bytes per 64 x 256",
                     "1/2 + 1/64 + 4 / (64 x 256)", 0.5 + 1.0 / 64 + cost::kFloatBytes / (64 * 256));
  derived.four_bit = working.derive(
      "A matrix of 256 by 1024, the two tables of codes included",
      filled("{} / 2 + {} / 64 + 4 x {} / (64 x 256) + 4 x 16 + 4 x 256", {256 * 1024, 256 * 1024, 256 * 1024}),
      cost::four_bit_bytes(256 * 1024, 64, true), Unit::Bytes);
  return derived;
}

void measure_precision(Working& working, const DerivedPrecision& derived) {
  const RoundedAway limits = rounded_away();
  working.claim_equal("Over all significands, the least half distance to a neighbour, as a share", derived.least,
                      limits.least);
  working.claim_equal("... and the largest", derived.most, limits.most);
  const PrecisionRun plain = train_kept(Keeping::BFloat16), twin = train_kept(Keeping::Float32),
                     master = train_kept(Keeping::Master);
  const std::string all = " of " + std::to_string(kPlainWidth * kPlainWidth);
  working.claim("bfloat16 weights, |w| >= 0.01, AdamW at 1e-5 without decay, " +
                    amount_text(static_cast<Amount>(kPlainSteps)) + " steps: elements that moved",
                "0" + all, std::to_string(plain.moved) + all, plain.moved == 0);
  working.claim_equal("Over its weights, the least half distance to a neighbour: above a step of 1e-5",
                      derived.at_least, plain.least_half);
  const auto moves = [&](const char* text, const PrecisionRun& run) {
    working.claim(text, std::to_string(run.far_enough) + all + " have gone over half the way, and over half of all",
                  std::to_string(run.moved) + all,
                  run.moved == run.far_enough && 2 * run.moved > kPlainWidth * kPlainWidth);
  };
  moves("Their float32 twins, rounded to bfloat16 at the end: elements that moved", twin);
  moves("Lathe's bfloat16 storage with a float32 master: likewise", master);
  const auto fall = [](const PrecisionRun& run) { return run.losses.back() / run.losses.front(); };
  working.claim("Last loss over first: bfloat16, float32, master", "1; below 0.1; below 0.1",
                short_number(fall(plain)) + "; " + short_number(fall(twin)) + "; " + short_number(fall(master)),
                fall(plain) == 1 && fall(twin) < 0.1 && fall(master) < 0.1);
  working.claim_equal("Bytes per parameter in training, counted", derived.trained,
                      trained_bytes_per_parameter(at::kFloat));
  working.claim_equal("... in bfloat16 with a float32 master", derived.mixed,
                      trained_bytes_per_parameter(at::kBFloat16));
  const QloraRun qlora = train_qlora();
  working.claim_equal("Bytes of the NF4 base, counted", derived.four_bit, qlora.base_bytes, Unit::Bytes);
  working.claim_equal("... per parameter, the two tables of codes aside", derived.per_parameter,
                      (qlora.base_bytes - cost::kFloatBytes * (16 + 256)) / (kQloraWidth * kQloraOutputs));
  working.claim("QLoRA: after 60 steps every byte of the base is what it was", "no byte differs",
                qlora.same_base ? "none" : "some", qlora.same_base);
  const double learned = qlora.losses.back() / qlora.losses.front();
  working.claim("... and it has learned: last loss over first", "below 0.5", short_number(learned), learned < 0.5);
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
