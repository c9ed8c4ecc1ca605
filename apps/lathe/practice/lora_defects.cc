// Question 4b: a LoRA layer with four defects.
#include "practice/lora_defects.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "lathe/cost/closed_forms.h"
#include "practice/lora.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr const char* kExamLayer =
    "class LoRALayer(nn.Module):                       # DEFECTIVE, as the exam has it\n"
    "    def __init__(self, base_layer, rank=4, alpha=1.0):\n"
    "        self.base_layer = base_layer              # (3) not frozen\n"
    "        self.A = nn.Parameter(0.02 * torch.randn(in_features, rank))    # (4) whatever the fan-in\n"
    "        self.B = nn.Parameter(0.02 * torch.randn(rank, out_features))   # (1) not zero\n"
    "    def forward(self, x):\n"
    "        return self.base_layer(x) + (x @ self.A) @ self.B               # (2) without alpha / rank\n";
struct NamedCase {
  const char *id, *name;  // as --variant takes it, and in words
  LoraCase which;
};

const std::vector<NamedCase>& lora_cases() {
  static const std::vector<NamedCase> kCases = {
      {"", "the library's LoRALinear", {.library = true}},
      {"b-drawn", "(1) B drawn", {.defects = {.random_b = true}}},
      {"unscaled", "(2) not scaled", {.defects = {.unscaled = true}}},
      {"unfrozen", "(3) base not frozen", {.defects = {.trains_base = true}}},
      {"constant-scale", "(4) A's scale constant", {.defects = {.constant_scale = true}}},
      {"all", "the exam's layer, all four", {.defects = LoraDefects::all()}},
  };
  return kCases;
}

constexpr int64_t kRank = 4, kHighRank = 64, kWidth = 256, kNarrow = 64, kWide = 4096;
constexpr double kAlpha = 1, kHighAlpha = 16;

// With another rank, alpha or width, and B zero at the start so that only the step shows.
LoraCase changed(LoraCase which, int64_t rank, double alpha, int64_t width) {
  which.defects.random_b = false;
  which.rank = rank;
  which.alpha = alpha;
  which.width = width;
  return which;
}

// By a layer's modules, or by the formulas.
struct LoraSymptoms {
  double shift;
  double usual, high_rank, high_alpha, narrow, wide;  // how far the first step moves the output
  double loss;                                        // of step kJudgedStep, over the first

  double of_rank() const { return high_rank / usual; }
  double of_alpha() const { return high_alpha / usual; }
  double of_width() const { return wide / narrow; }
};

LoraSymptoms symptoms_of(const LoraCase& which, double (*shift)(const LoraCase&), double (*step)(const LoraCase&),
                         const std::vector<double>& losses) {
  const auto change = [&](int64_t rank, double alpha, int64_t width) {
    return step(changed(which, rank, alpha, width));
  };
  return {.shift = shift(which),
          .usual = change(kRank, kAlpha, kWidth),
          .high_rank = change(kHighRank, kAlpha, kWidth),
          .high_alpha = change(kRank, kHighAlpha, kWidth),
          .narrow = change(kRank, kAlpha, kNarrow),
          .wide = change(kRank, kAlpha, kWide),
          .loss = losses[kJudgedStep] / losses.front()};
}

struct CaseRun {
  const NamedCase& item;
  LoraTraining training;
  std::vector<double> expected_losses;
  LoraSymptoms found, expected;

  explicit CaseRun(const NamedCase& item_)
      : item(item_),
        training(train_lora(item.which)),
        expected_losses(reference_losses(item.which)),
        found(symptoms_of(item.which, shift_at_start, first_step_change, training.losses)),
        expected(symptoms_of(item.which, reference_shift, reference_step_change, expected_losses)) {}

  double last_loss() const { return training.losses.back() / training.losses.front(); }
};

// The last that rounding does not reach: later the loss lies where Adam's steps wander about.
const std::string kJudgedLoss = "loss of step " + std::to_string(kJudgedStep) + " over the first";

// Outputs near 1 are rounded to 24 bits before and after, in two sums each.
constexpr double kOutputRounding = 4 * 0x1p-24;
double resolved_step(double step) { return kOutputRounding * std::sqrt(static_cast<double>(kLoraOutputs)) / step; }

// What the symptoms are over all draws, and two deviations of what the run's draws scatter, as shares.
struct Averages {
  Amount shift, shift_scatter, rank, rank_scatter, width, width_scatter;
};

Averages explain(Working& working) {
  const auto in = static_cast<Amount>(kWidth), rank = static_cast<Amount>(kRank), high = static_cast<Amount>(kHighRank),
             narrow = static_cast<Amount>(kNarrow), wide = static_cast<Amount>(kWide);
  const Amount out = kLoraOutputs, shift_samples = kShiftSamples, draws = kShiftDraws, terms = kStepSamples * rank,
               magnitude = std::acos(0) - 1;  // of |N(0, 1)|: variance over squared mean, pi/2 - 1
  Averages averages{};
  working.say(
      "(1) B must start at zero. Drawn, it adds (x A) B to the pretrained layer's output before the first step: the "
      "model that is fine-tuned is no longer the one that was trained.");
  averages.shift = working.derive(
      "The disturbance at step 0 on average, for x of unit variance, in 256 features, rank 4, over the output of W "
      "with variance 1 / in",
      filled("0.02^2 sqrt(in r) = 0.02^2 x sqrt({} x {})", {in, rank}), 0.02 * 0.02 * std::sqrt(in * rank));
  averages.shift_scatter =
      2 * working.derive("... which scatters with the draws of B, A and x A by (one deviation)",
                         filled("sqrt((1 / (2 x {}) + 1 / (2 x {}) + 1 / (2 x {})) / {})",
                                {rank * out, in * rank, shift_samples * rank, draws}),
                         std::sqrt((1 / (rank * out) + 1 / (in * rank) + 1 / (shift_samples * rank)) / 2 / draws),
                         Unit::Share);
  working.say(
      "(2) The product must be scaled by alpha / rank. Adam moves every element of B by about the learning rate, "
      "whatever the gradient's size, so a step moves each output by lr scaling sum_r |x A'|_r, a sum over `rank` "
      "terms: "
      "with alpha / rank in front it does not grow with the rank, and a learning rate that was found at one rank holds "
      "at another. Without it alpha does nothing at all.");
  averages.rank = working.derive("The first step at rank 64 over that at rank 4 on average: unscaled",
                                 filled("{} / {}", {high, rank}), high / rank);
  averages.rank_scatter =
      2 * working.derive(
              "... which scatters by (one deviation)",
              filled("sqrt((pi / 2 - 1) (1 / ({} x {}) + 1 / ({} x {})))", {kStepSamples, rank, kStepSamples, high}),
              std::sqrt(magnitude * (1 / terms + 1 / (kStepSamples * high))), Unit::Share);
  working.say(
      "(3) The base layer must be frozen. Otherwise its weights train as well: the memory for gradients and optimizer "
      "state that LoRA is there to save is spent, and saving the adapter alone loses what the base has learned.");
  working.say(
      "(4) A's scale must follow the fan-in, as kaiming-uniform's does (here U(-1/sqrt(in), 1/sqrt(in))): then x A has "
      "the same size at every width. With a constant 0.02 it grows with the square root of the width, and so do the "
      "first updates.");
  averages.width = working.derive("The first step at width 4096 over that at width 64 on average: constant scale",
                                  filled("sqrt({} / {})", {wide, narrow}), std::sqrt(wide / narrow));
  averages.width_scatter = 2 * working.derive("... which scatters by (one deviation)",
                                              filled("sqrt((pi / 2 - 1) 2 / ({} x {}))", {kStepSamples, rank}),
                                              std::sqrt(magnitude * 2 / terms), Unit::Share);
  working.say(
      "Each layer's own numbers are expected where these formulas and Adam's put them for the very draws of the run: "
      "in "
      "float64, without autograd, module or optimizer.");
  return averages;
}

std::string moved_text(bool moved) { return moved ? "moved" : "not moved"; }

Amount derived_trainable(Working& working, const NamedCase& item) {
  const auto in = static_cast<Amount>(kWidth), out = static_cast<Amount>(kLoraOutputs),
             rank = static_cast<Amount>(kRank);
  const std::string text = std::string(item.name) + ": parameters that train, 256 to 64 features, rank 4";
  const Amount adapter = cost::lora_parameters(in, out, rank);
  if (!item.which.defects.trains_base) return working.derive(text, filled("{} x ({} + {})", {rank, in, out}), adapter);
  return working.derive(text, filled("{} x ({} + {}) + {} x {}", {rank, in, out, in, out}), adapter + in * out);
}

// A ratio of steps, for the draws of the run.
void claim_ratio(Working& working, const std::string& text, std::pair<double, double> expected, double found) {
  working.claim_close(text,
                      working.derive(text, filled("mean |dy| / mean |dy| = {} / {}", {expected.first, expected.second}),
                                     expected.first / expected.second),
                      found, resolved_step(std::min(expected.first, expected.second)));
}

// The symptoms of a layer's defects; of the library's layer that it has none.
void claim_symptoms(Working& working, const CaseRun& run, const Averages& averages) {
  const LoraDefects& defects = run.item.which.defects;
  const LoraSymptoms &found = run.found, &expected = run.expected;
  const bool library = run.item.which.library, alone = !defects.trains_base;  // the base's own steps hide others
  const std::string name = std::string(run.item.name) + ": ";
  const auto claim = [&](const std::string& what, const char* formula, double derived, double measured,
                         double tolerance) {
    working.claim_close(name + what, working.derive(name + what, formula, derived), measured, tolerance);
  };
  if (library)
    working.claim(name + "the output at step 0 is the base's, to the bit", "0", short_number(found.shift),
                  found.shift == 0);
  if (defects.random_b)
    claim("the output at step 0 is off by this share", "|scaling (x A) B| / |x W|", expected.shift, found.shift,
          kOutputRounding / expected.shift);
  if (defects.random_b && defects.unscaled && defects.constant_scale)
    working.claim_close("... and on average", averages.shift, found.shift, averages.shift_scatter);
  if ((defects.unscaled && alone) || library)
    claim_ratio(working, name + "a step at rank 64 moves the output so many times as far as at rank 4",
                {expected.high_rank, expected.usual}, found.of_rank());
  if (defects.unscaled && alone)
    working.claim_close("... and on average", averages.rank, found.of_rank(), averages.rank_scatter);
  if (library)
    claim_ratio(working, name + "a step at alpha 16 so many times as far as at alpha 1",
                {expected.high_alpha, expected.usual}, found.of_alpha());
  if ((defects.constant_scale && alone) || library)
    claim_ratio(working, name + "a step at width 4096 so many times as far as at width 64",
                {expected.wide, expected.narrow}, found.of_width());
  if (defects.constant_scale && alone)
    working.claim_close("... and on average", averages.width, found.of_width(), averages.width_scatter);
  if (defects.trains_base || library) {
    working.claim_equal(name + "parameters that train", derived_trainable(working, run.item),
                        static_cast<Amount>(trainable_parameters(run.item.which)));
    working.claim(name + "the bits of the base after training", moved_text(defects.trains_base),
                  moved_text(run.training.base_moved), run.training.base_moved == defects.trains_base);
  }
  claim(kJudgedLoss, "Adam by its formulas", expected.loss, found.loss,
        training_rounding(kJudgedStep, run.expected_losses.back()));
}

std::string symptom_text(const CaseRun& run) {
  const LoraDefects& defects = run.item.which.defects;
  std::string text = "Symptom:";
  if (defects.random_b) text += " the output at step 0 is off by " + short_number(run.found.shift) + " of itself;";
  if (defects.unscaled && !defects.trains_base)
    text += " a step at rank 64 moves the output " + short_number(run.found.of_rank()) + " times as far as at rank 4;";
  if (defects.trains_base) text += " the base has " + moved_text(run.training.base_moved) + " after training;";
  if (defects.constant_scale && !defects.trains_base)
    text += " a step at width 4096 moves the output " + short_number(run.found.of_width()) +
            " times as far as at width 64;";
  return text + " 200 steps leave " + short_number(run.last_loss()) + " of the loss.";
}

// The exam's layer without a defect is the library's, given the same A and B.
void claim_mended(Working& working) {
  const LoraCase mended{};
  torch::nn::Linear base(torch::nn::LinearOptions(kWidth, kLoraOutputs).bias(false));
  ExamLoRA exam(base, mended.rank, mended.alpha, {}, "4b.0");
  exam.B.set_data(drawn(exam.B.sizes(), "4b.trained"));
  nn::LoRALinear library(base, nn::LoRALinearOptions(mended.rank, mended.alpha));
  library->lora_A->weight.set_data(exam.A.detach().t().contiguous());
  library->lora_B->weight.set_data(exam.B.detach().t().contiguous());
  const Tensor x = drawn({16, kWidth}, "4b.x");
  const double difference = relative_difference(library->forward(x), exam.forward(x)), limit = kWidth * 0x1p-24;
  working.claim("With the four mended, the exam's layer computes what LoRALinear does",
                "at most " + short_number(limit) + " apart", short_number(difference), difference <= limit);
}

report::Series loss_series(const std::vector<double>& losses) {
  report::Series series;
  for (size_t step = 0; step < losses.size(); ++step) series.x.push_back(static_cast<double>(step));
  series.y = losses;
  return series;
}

void draw_trainings(Working& working, const std::vector<CaseRun>& runs) {
  report::Chart defects{.id = "loss",
                        .title = "Training under each defect",
                        .note = "Rank 4, alpha 1, Adam.",
                        .y_label = "loss",
                        .from_zero = true};
  for (size_t i = 0; i < runs.size(); ++i) {
    working.answer.names.emplace_back(runs[i].item.name);
    defects.curves.push_back({.label = "loss", .run = i, .series = loss_series(runs[i].training.losses)});
  }
  working.answer.charts.push_back(std::move(defects));
}

// Learning that changes with the rank at equal alpha, and learning that does not.
void compare_ranks(Working& working) {
  report::Chart chart{.id = "ranks",
                      .title = "Equal alpha, other ranks",
                      .note = "alpha 1, Adam, the same learning rate.",
                      .y_label = "loss",
                      .from_zero = true};
  for (const bool library : {true, false}) {
    for (const int64_t rank : {4, 16, 64}) {
      LoraCase which{.library = library, .rank = rank};
      which.defects.unscaled = !library;
      const std::string name = (library ? "LoRALinear, rank " : "not scaled, rank ") + std::to_string(rank);
      const std::vector<double> losses = train_lora(which).losses, expected = reference_losses(which);
      const std::string text = name + ", alpha 1: " + kJudgedLoss;
      working.claim_close(text, working.derive(text, "Adam by its formulas", expected.back() / expected.front()),
                          losses[kJudgedStep] / losses.front(), training_rounding(kJudgedStep, expected.back()));
      chart.curves.push_back({.label = "loss", .run = working.answer.names.size(), .series = loss_series(losses)});
      working.answer.names.push_back(name);
    }
  }
  working.answer.charts.push_back(std::move(chart));
}

Answer answer_lora_defects(const Settings& settings) {
  Working working(settings);
  working.answer.in_short =
      "B is not zero, so the model changes before training; the product is not scaled by alpha / rank; the base is not "
      "frozen; A's scale does not follow the fan-in.";
  working.answer.listings = {{"The exam's layer", kExamLayer},
                             {"Mended, as it runs (the library's is nn::LoRALinear)", lora_code({})}};
  const Averages averages = explain(working);
  Table table{"Each defect and its symptom",
              "Shift: of the output at step 0. Steps: how far the first step of Adam moves the output, as ratios.",
              {"layer", "shift", "rank 64 / 4", "alpha 16 / 1", "width 4096 / 64", "base", "last loss over first"},
              {}};
  std::vector<CaseRun> runs;
  for (const NamedCase& item : lora_cases()) {
    if (!item.which.library && !settings.variant.empty() && settings.variant != item.id) continue;
    const CaseRun& run = runs.emplace_back(item);
    claim_symptoms(working, run, averages);
    if (!item.which.library)
      working.answer.listings.push_back(
          {std::string("Wrong: ") + item.name, lora_code(item.which.defects), symptom_text(run)});
    table.rows.push_back({item.name, short_number(run.found.shift), short_number(run.found.of_rank()),
                          short_number(run.found.of_alpha()), short_number(run.found.of_width()),
                          moved_text(run.training.base_moved), short_number(run.last_loss())});
  }
  working.answer.tables.push_back(std::move(table));
  claim_mended(working);
  draw_trainings(working, runs);
  if (settings.variant.empty()) compare_ranks(working);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion4b;
const Question kQuestion4b = {
    "4b",
    "A LoRA layer with four defects",
    "A LoRA layer wraps a base layer, takes rank = 4 and alpha = 1.0, makes A [in, rank] and B [rank, out], draws both "
    "from N(0, 0.02^2), and returns base(x) + (x A) B. What is wrong with it, and what does each mistake do?",
    answer_lora_defects,
    /*has_long_run=*/false,
    {"b-drawn", "unscaled", "unfrozen", "constant-scale", "all"}};

}  // namespace lathe::app::practice
