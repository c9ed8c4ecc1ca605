// Question 2a: gradient accumulation.
#include <ATen/ops/arange.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/remainder.h>

#include <cmath>

#include "lathe/nn/modules.h"
#include "lathe/nn/moe_balance.h"
#include "lathe/nn/moe_router.h"
#include "practice/mixer.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr cost::MixerSizes kAccumulated{
    .sequence_length = 32, .width = 64, .tokens_hidden_size = 128, .channels_hidden_size = 256, .num_blocks = 4};
constexpr int64_t kGlobalBatch = 32, kExamMicroBatch = 8;
constexpr double kNormEps = 1e-5;
const std::vector<int64_t> kMicroBatches = {1, 2, 4, 8, 16, 32};

struct GlobalBatch {
  Tensor x, labels;

  explicit GlobalBatch(at::ScalarType dtype)
      : x(drawn({kGlobalBatch, 32, 64}, "2a.x", dtype)),
        labels(at::remainder(at::arange(kGlobalBatch, at::kLong), SmallMixer::kClasses)) {}
};

// One window: the sum of the micro-batches' gradients, each loss divided by the window's samples.
std::vector<Tensor> accumulate(const SmallMixer& model, const GlobalBatch& batch, int64_t micro_batch) {
  forget_gradients(model.parameters());
  for (int64_t first = 0; first < kGlobalBatch; first += micro_batch) {
    const Tensor logits = model.forward(batch.x.narrow(0, first, micro_batch));
    (nn::cross_entropy_sum(logits, batch.labels.narrow(0, first, micro_batch)) / kGlobalBatch).backward();
  }
  return gradients_of(model.parameters());
}

// Of a head behind a batch norm over `micro_batch` samples at a time: LibTorch's, or by hand.
Tensor batch_norm_gradient(int64_t micro_batch, bool by_hand = false) {
  const Tensor x = drawn({kGlobalBatch, 16}, "2a.features", at::kDouble);
  const Tensor weight = drawn({SmallMixer::kClasses, 16}, "2a.head", at::kDouble).requires_grad_();
  const Tensor labels = GlobalBatch(at::kDouble).labels;
  for (int64_t first = 0; first < kGlobalBatch; first += micro_batch) {
    const Tensor part = x.narrow(0, first, micro_batch), centred = part - part.mean(0);
    const Tensor normed = by_hand ? centred / (centred.square().mean(0) + kNormEps).sqrt()
                                  : at::batch_norm(part, {}, {}, {}, {}, /*training=*/true, 0.1, kNormEps,
                                                   /*cudnn_enabled=*/false);
    (nn::cross_entropy_sum(at::linear(normed, weight), labels.narrow(0, first, micro_batch)) / kGlobalBatch).backward();
  }
  return weight.grad();
}

enum class BalanceOver { Batch, MicroBatches, Window, Deviation };

// Of the auxiliary loss of a router: over the whole batch at once, as a mean over micro-batches, or as Lathe does, from
// the window's sums. Deviation: of what the second has beyond the first, E mean (f_m - f) P_m over micro-batches m.
Tensor balance_gradient(BalanceOver over) {
  const int64_t micro_batch = over == BalanceOver::Batch ? kGlobalBatch : 8;
  nn::TopKRouter router(16, 4, 2);
  router->weight.set_data(drawn({4, 16}, "2a.router", at::kDouble));
  router->weight.requires_grad_();
  const Tensor x = drawn({kGlobalBatch, 16}, "2a.tokens", at::kDouble);
  const auto sums = [&](int64_t first) {
    const nn::Routing routing = router->route(x.narrow(0, first, micro_batch), {});
    return nn::BalanceSums::of(routing, routing, {.aux_loss_weight = 1});
  };
  nn::BalanceSums window;
  for (int64_t first = 0; first < kGlobalBatch; first += micro_batch) window.add(sums(first));
  for (int64_t first = 0; first < kGlobalBatch; first += micro_batch) {
    const nn::BalanceSums part = sums(first);
    const double share = static_cast<double>(micro_batch) / kGlobalBatch;
    if (over == BalanceOver::Window) {
      nn::aux_loss(window.with_gradient_of(part)).backward();
    } else if (over == BalanceOver::Deviation) {
      const Tensor f = window.load_E / window.load_E.sum(), own = part.load_E / part.load_E.sum();
      (4 * ((own - f) * part.score_E).sum() / micro_batch * share).backward();
    } else {
      (nn::aux_loss(part) * share).backward();
    }
  }
  return router->weight.grad();
}

struct DerivedAccumulation {
  Amount kept_per_sample, gradients, exam;
};

DerivedAccumulation derive_accumulation(Working& working) {
  const cost::MixerSizes& m = kAccumulated;
  working.say(
      "The problem: the batch that optimises well does not fit into memory, because activations grow with the batch. "
      "Gradients do not: they have the size of the parameters, however many samples they sum over.");
  working.say(
      "The way out: run k micro-batches one after another, forward and backward, without touching the weights. "
      "LibTorch adds each micro-batch's gradient to the one that is there. Then one optimizer step, and the gradients "
      "are cleared. Memory is that of one micro-batch; the time is that of the whole batch.");
  working.say(
      "The result is that of the big batch if the loss is: the sum over all items of the window divided by their "
      "number, not by each micro-batch's own. It is not for what looks at a batch as a whole: batch norm's statistics, "
      "a balance loss of experts that is formed per micro-batch, and the draws of dropout, which fall differently.");
  DerivedAccumulation derived{};
  derived.kept_per_sample = working.derive(
      "The run: 4 blocks, s = 32, c = 64, d_s = 4 s, d_c = 4 c. Activations of a sample in a micro-batch",
      filled("4 x (20 x {} + 4 x {}) x 4 B", {m.unit(), m.sequence_length}),
      m.num_blocks * cost::mixer_block_kept(m, cost::Accounting::Autograd) * cost::kFloatBytes, Unit::Bytes);
  derived.gradients = working.derive("Gradients, whatever the micro-batch",
                                     filled("{} x {} x 4 B", {m.num_blocks, cost::mixer_block_parameters(m)}),
                                     m.num_blocks * cost::mixer_block_parameters(m) * cost::kFloatBytes, Unit::Bytes);
  derived.exam = working.derive("The exam's Mixer of question 1b with micro-batches of 8 instead of 1024 samples",
                                filled("24 x (20 u + 4 s) x 4 B x {}", {kExamMicroBatch}),
                                kExamMicroBatch * kExamMixer.num_blocks * cost::kFloatBytes *
                                    cost::mixer_block_kept(kExamMixer, cost::Accounting::Autograd),
                                Unit::Bytes);
  return derived;
}

void measure_memory(Working& working, const DerivedAccumulation& derived) {
  const SmallMixer model(kAccumulated, "2a");
  const GlobalBatch batch(at::kFloat);
  working.say(
      "The peak is counted over a step through the blocks from a given gradient of their output, and expected where "
      "the planner has it, which follows the same step operator by operator: the activations of one micro-batch, the "
      "gradients, and what passes.");
  Table table{"32 samples per step, in micro-batches (times are shown, not judged)",
              "",
              {"micro-batch", "steps of accumulation", "activations", "gradients", "peak", "time"},
              {}};
  report::Chart chart{.id = "memory",
                      .title = "Memory against the micro-batch",
                      .note = "32 samples per step in all.",
                      .y_label = "bytes",
                      .x_label = "samples per micro-batch",
                      .bytes = true,
                      .from_zero = true};
  working.answer.names = {"activations", "gradients", "peak"};
  for (size_t curve = 0; curve < 3; ++curve)
    chart.curves.push_back({.label = "bytes", .run = curve, .kind = report::Curve::Kind::Points});
  for (const int64_t m : kMicroBatches) {
    const BlocksMemory run = measured_memory(model, batch.x, m);
    const double seconds = seconds_of([&] { accumulate(model, batch, m); });
    const std::string name = "Micro-batches of " + std::to_string(m);
    working.claim_equal(name + ": activations", static_cast<Amount>(m) * derived.kept_per_sample, run.kept,
                        Unit::Bytes);
    working.claim_equal(name + ": gradients", derived.gradients, run.gradients, Unit::Bytes);
    const Amount peak = derive_peak(working, "Peak with micro-batches of " + std::to_string(m),
                                    planned_memory(kAccumulated, kGlobalBatch, m));
    working.claim_equal(name + ": peak", peak, run.peak, Unit::Bytes);
    table.rows.push_back({std::to_string(m), std::to_string(kGlobalBatch / m), amount_text(run.kept, Unit::Bytes),
                          amount_text(run.gradients, Unit::Bytes), amount_text(run.peak, Unit::Bytes),
                          short_number(1000 * seconds) + " ms"});
    for (const auto& [curve, value] : {std::pair(0, run.kept), {1, run.gradients}, {2, run.peak}}) {
      report::Series& series = chart.curves[static_cast<size_t>(curve)].series;
      series.x.push_back(static_cast<double>(m));
      series.y.push_back(value);
    }
  }
  working.claim_equal("The exam's Mixer with micro-batches of 8, as the planner follows its 24 blocks", derived.exam,
                      planned_memory(kExamMixer, kExamMicroBatch, kExamMicroBatch).kept, Unit::Bytes);
  working.answer.tables.push_back(std::move(table));
  working.answer.charts.push_back(std::move(chart));
}

void measure_equality(Working& working) {
  const SmallMixer model(kAccumulated, "2a", at::kDouble);
  const GlobalBatch batch(at::kDouble);
  const auto whole = accumulate(model, batch, kGlobalBatch);
  double worst = 0;
  for (const int64_t m : kMicroBatches) worst = std::max(worst, largest_difference(accumulate(model, batch, m), whole));
  working.claim("In float64, the gradients of every split equal those of the big batch", "at most 1e-12 apart",
                short_number(worst), worst <= kApart);
  const Tensor normed = batch_norm_gradient(8);
  const double by_hand = relative_difference(normed, batch_norm_gradient(8, /*by_hand=*/true)),
               norm = relative_difference(normed, batch_norm_gradient(kGlobalBatch));
  working.claim("Not behind batch norm, which takes mean and variance of the micro-batch of 8",
                "at most 1e-12 from each 8 normalised by themselves, more from the batch's gradient",
                short_number(by_hand) + ", " + short_number(norm), by_hand <= kApart && norm > kApart);
  const Tensor balance = balance_gradient(BalanceOver::Batch), mean = balance_gradient(BalanceOver::MicroBatches);
  const double beyond = relative_difference(mean - balance, balance_gradient(BalanceOver::Deviation)),
               apart = relative_difference(mean, balance);
  working.claim(
      "Not for an auxiliary loss of experts that is averaged over micro-batches: it has E mean (f_m - f) P_m more",
      "at most 1e-12 from that, more from the batch's gradient", short_number(beyond) + ", " + short_number(apart),
      beyond <= kApart && apart > kApart);
  const double window = relative_difference(balance_gradient(BalanceOver::Window), balance);
  working.claim("It is when the loss is formed from the sums of the window, as Lathe forms it", "at most 1e-12 apart",
                short_number(window), window <= kApart);
}

Answer answer_accumulation(const Settings& settings) {
  Working working(settings);
  const DerivedAccumulation derived = derive_accumulation(working);
  working.answer.in_short =
      "It trains with a batch whose activations do not fit: gradients of micro-batches are summed, then one step is "
      "made. Equal to the big batch if the loss is divided by the items of the whole window and no layer looks across "
      "samples.";
  measure_memory(working, derived);
  measure_equality(working);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion2a;
const Question kQuestion2a = {"2a", "Gradient accumulation",
                              "What problem does gradient accumulation solve, how does it work, and when is its result "
                              "the same as that of the big batch?",
                              answer_accumulation};

}  // namespace lathe::app::practice
