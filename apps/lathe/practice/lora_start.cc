// Question 4d: B starts at zero, and yet LoRA learns.
#include <ATen/ops/arange.h>
#include <ATen/ops/remainder.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "lathe/cost/closed_forms.h"
#include "lathe/nn/modules.h"
#include "lathe/optim/adam.h"
#include "practice/lora.h"
#include "practice/reference.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr int64_t kStartWidth = 64, kStartClasses = 8, kStartSamples = 128, kStartSteps = 60;
constexpr int64_t kStartRank = 4;
constexpr double kStartRate = 2e-2, kStartAlpha = 8;
// Each step rounds gradients and weights to 24 bits.
constexpr double kStartRounding = kStartSteps * 0x1p-24;

// A frozen linear classifier with an adapter, over samples that its weights know nothing of.
struct StartRun {
  nn::Linear base = make_linear(kStartWidth, kStartClasses, "4d.base");
  nn::LoRALinear lora = make_lora(base.ptr(), nn::LoRALinearOptions(kStartRank, kStartAlpha), "4d.lora");
  Tensor x = drawn({kStartSamples, kStartWidth}, "4d.x");
  Tensor labels = at::remainder(at::arange(kStartSamples, at::kLong), kStartClasses);
  Tensor outputs = {};                                                  // of step 0
  std::vector<double> losses = {}, a_norms = {}, b_norms = {};          // before each step
  Tensor a_gradient = {}, b_gradient = {}, output_gradient = {};        // of step 0
  Tensor next_b = {}, next_a_gradient = {}, next_output_gradient = {};  // of step 1

  Tensor& a() { return lora->lora_A->weight; }
  Tensor& b() { return lora->lora_B->weight; }

  void train() {
    optim::AdamW optimizer({{"A", a()}, {"B", b()}});
    for (int64_t step = 0; step < kStartSteps; ++step) {
      Tensor y = lora->forward(x);
      y.retain_grad();
      const Tensor loss = nn::cross_entropy_sum(y, labels) / kStartSamples;
      loss.backward();
      losses.push_back(loss.item<double>());
      a_norms.push_back(a().grad().norm().item<double>());
      b_norms.push_back(b().grad().norm().item<double>());
      if (step == 0) {
        outputs = y.detach();
        a_gradient = a().grad().clone();
        b_gradient = b().grad().clone();
        output_gradient = y.grad().clone();
      }
      if (step == 1) {
        next_b = b().detach().clone();
        next_a_gradient = a().grad().clone();
        next_output_gradient = y.grad().clone();
      }
      optimizer.step(kStartRate);
      optimizer.zero_grad();
    }
  }
};

void claim_formulas(Working& working, StartRun& run, const Tensor& a_at_start) {
  const Tensor x = run.x.to(at::kDouble), a = a_at_start.to(at::kDouble), g = run.output_gradient.to(at::kDouble);
  const Tensor expected = g.t().matmul(x.matmul(a.t())) * run.lora->scaling();
  const double difference = relative_difference(run.b_gradient.to(at::kDouble), expected);
  // Sums over 128 samples of products that are sums of 64.
  const double limit = kStartSamples * 0x1p-23;
  working.claim("At step 0 the gradient of B is the formula's, scaling g' (x A')",
                "at most " + short_number(limit) + " apart", short_number(difference), difference <= limit);
  const Tensor b = run.next_b.to(at::kDouble), next_g = run.next_output_gradient.to(at::kDouble);
  const double next =
      relative_difference(run.next_a_gradient.to(at::kDouble), next_g.matmul(b).t().matmul(x) * run.lora->scaling());
  working.claim("At step 1 that of A is, scaling (g B)' x", "at most " + short_number(limit) + " apart",
                short_number(next), next <= limit);
}

struct ReferenceStart {
  std::vector<double> losses, a_norms, b_norms;  // before each step
};

ReferenceStart reference_start(const StartRun& run, const Tensor& a_at_start) {
  ReferenceLayer layer{.w = run.base->weight.detach().to(at::kDouble),
                       .a = a_at_start.to(at::kDouble),
                       .b = at::zeros({kStartClasses, a_at_start.size(0)}, at::kDouble),
                       .scaling = kStartAlpha / static_cast<double>(kStartRank)};
  const Tensor x = run.x.to(at::kDouble);
  const OutputLoss loss = mean_cross_entropy_of(run.labels);
  ReferenceStart found;
  for (int64_t step = 0; step < kStartSteps; ++step) {
    const auto [value, g] = loss(layer.forward(x));
    layer.step(x, g, kStartRate);
    found.losses.push_back(value);
    found.a_norms.push_back(layer.gradients[0].norm().item<double>());
    found.b_norms.push_back(layer.gradients[1].norm().item<double>());
  }
  return found;
}

// The course of the training, by the formulas in float64.
void claim_course(Working& working, const StartRun& run, const ReferenceStart& expected) {
  working.say(
      "The numbers of the training itself are expected where these formulas and Adam's put them from the same start, "
      "in "
      "float64, without autograd, module or optimizer.");
  for (const size_t step : {size_t{0}, size_t{1}, size_t{2}}) {
    const std::string at = "at step " + std::to_string(step);
    const auto norm = [&](const std::string& text, const char* formula, double derived, double measured) {
      working.claim_close(text, working.derive(text, formula, derived), measured, kStartRounding);
    };
    if (step > 0) norm("Gradient norm of A " + at, "|scaling (g B)' x|", expected.a_norms[step], run.a_norms[step]);
    norm("Gradient norm of B " + at, "|scaling g' (x A')|", expected.b_norms[step], run.b_norms[step]);
  }
  const std::string text = "The loss of step " + std::to_string(kStartSteps - 1) + " over that of step 0";
  working.claim_close("It learns: " + text,
                      working.derive(text, "Adam by its formulas", expected.losses.back() / expected.losses.front()),
                      run.losses.back() / run.losses.front(), kStartRounding);
}

void measure_start(Working& working, StartRun& run, Amount with_gradient) {
  const Tensor a_at_start = run.a().detach().clone();
  const Tensor base = run.base->forward(run.x);
  run.train();
  working.claim("The outputs at step 0 are those of the frozen layer, bit for bit", "no bit differs",
                same_bits(run.outputs, base) ? "none" : "some", same_bits(run.outputs, base));
  working.claim_equal(
      "Elements with a gradient that is not zero at step 0, of A and B", with_gradient,
      static_cast<Amount>((run.a_gradient.count_nonzero() + run.b_gradient.count_nonzero()).item<int64_t>()));
  working.claim("Gradient norm of A at step 0: exactly 0", "0", short_number(run.a_norms[0]), run.a_norms[0] == 0);
  claim_formulas(working, run, a_at_start);
  claim_course(working, run, reference_start(run, a_at_start));
}

void show_start(Working& working, const StartRun& run, const StartRun& zero) {
  Table table{"The first steps", "", {"step", "loss", "gradient norm of A", "gradient norm of B"}, {}};
  for (size_t step = 0; step < 3; ++step)
    table.rows.push_back({std::to_string(step), short_number(run.losses[step]), short_number(run.a_norms[step]),
                          short_number(run.b_norms[step])});
  working.answer.tables.push_back(std::move(table));
  working.answer.names = {"A drawn, B zero", "both zero", "gradient of A", "gradient of B"};
  report::Chart loss{.id = "loss", .title = "Loss", .y_label = "loss"},
      norms{.id = "norms", .title = "Gradient norms", .note = "A drawn, B zero.", .y_label = "norm"};
  report::Series x;
  for (size_t i = 0; i < run.losses.size(); ++i) x.x.push_back(static_cast<double>(i));
  loss.curves = {{.label = "loss", .run = 0, .series = {x.x, run.losses}},
                 {.label = "loss", .run = 1, .series = {x.x, zero.losses}}};
  norms.curves = {{.label = "norm", .run = 2, .series = {x.x, run.a_norms}},
                  {.label = "norm", .run = 3, .series = {x.x, run.b_norms}}};
  working.answer.charts = {std::move(loss), std::move(norms)};
}

Answer answer_lora_start(const Settings& settings) {
  Working working(settings);
  working.answer.in_short =
      "The gradient of B has A x as a factor, which is not zero; only that of A is zero, and only at the first step. "
      "Training starts exactly at the pretrained model.";
  working.say(
      "y = W x + scaling B A x, g = dL/dy. By the chain rule dL/dB = scaling g (A x)', and dL/dA = scaling B' g x'. At "
      "the first step B = 0, so the gradient of A is zero; but that of B is not, because A is drawn at random and A x "
      "is not zero. After one step B is not zero either, and from the second on both learn.");
  working.say(
      "The advantage of B = 0: B A = 0, so training starts exactly at the pretrained model, whatever A is; nothing "
      "that it knows is disturbed first. A = 0 with B at random would do as well. Both zero would not: each gradient "
      "has the other matrix as a factor, so both stay zero for ever. Neither zero starts with a random disturbance.");
  const Amount with_gradient = working.derive("Parameters that have a gradient at step 0: those of B",
                                              filled("out x r = {} x {}", {kStartClasses, kStartRank}),
                                              cost::lora_parameters(0, kStartClasses, kStartRank));
  StartRun run;
  measure_start(working, run, with_gradient);
  StartRun zero;
  zero.a().set_data(at::zeros_like(zero.a()));
  zero.train();
  bool never = zero.losses.back() == zero.losses.front();
  for (size_t i = 0; i < zero.losses.size(); ++i) never = never && zero.a_norms[i] == 0 && zero.b_norms[i] == 0;
  never = never && zero.a().count_nonzero().item<int64_t>() == 0 && zero.b().count_nonzero().item<int64_t>() == 0;
  const double largest_gradient = std::max(*std::max_element(zero.a_norms.begin(), zero.a_norms.end()),
                                           *std::max_element(zero.b_norms.begin(), zero.b_norms.end()));
  working.claim("Both zero: after " + std::to_string(kStartSteps) + " steps all gradients were 0 and all weights are",
                "0, and loss " + short_number(zero.losses.front()) + " throughout",
                "the largest gradient " + short_number(largest_gradient) + ", loss " + short_number(zero.losses.back()),
                never);

  show_start(working, run, zero);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion4d;
const Question kQuestion4d = {
    "4d", "B starts at zero",
    "In LoRA the matrix B is initialised with zeros. Why does it learn all the same, and what is the advantage of it?",
    answer_lora_start};

}  // namespace lathe::app::practice
