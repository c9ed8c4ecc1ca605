// Question 4b: a LoRA layer with four defects.
#include "practice/lora_defects.h"

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
constexpr const char* kMendedLayer =
    "        for p in base_layer.parameters(): p.requires_grad = False       # (3)\n"
    "        self.A = nn.Parameter(torch.empty(in_features, rank))\n"
    "        nn.init.uniform_(self.A, -in_features ** -0.5, in_features ** -0.5)   # (4) kaiming_uniform, a = sqrt(5)\n"
    "        self.B = nn.Parameter(torch.zeros(rank, out_features))          # (1)\n"
    "        self.scaling = alpha / rank                                     # (2)\n"
    "        return self.base_layer(x) + (x @ self.A) @ self.B * self.scaling\n";

struct NamedCase {
  const char* name;
  LoraCase which;
};

const std::vector<NamedCase>& lora_cases() {
  static const std::vector<NamedCase> kCases = {
      {"the library's LoRALinear", {.library = true}},
      {"(1) B drawn", {.defects = {.random_b = true}}},
      {"(2) not scaled", {.defects = {.unscaled = true}}},
      {"(3) base not frozen", {.defects = {.trains_base = true}}},
      {"(4) A's scale constant", {.defects = {.constant_scale = true}}},
      {"the exam's layer, all four", {.defects = LoraDefects::all()}},
  };
  return kCases;
}

// With another rank, alpha or width, and B zero at the start so that only the step shows.
double change_with(LoraCase which, int64_t rank, double alpha, int64_t width) {
  which.defects.random_b = false;
  which.rank = rank;
  which.alpha = alpha;
  which.width = width;
  return first_step_change(which);
}

struct LoraSymptoms {
  double shift, of_rank, of_alpha, of_width;
  int64_t trainable;
  LoraTraining training;
};

LoraSymptoms symptoms_of(const LoraCase& which) {
  const double usual = change_with(which, 4, 1, 256);
  return {.shift = shift_at_start(which),
          .of_rank = change_with(which, 64, 1, 256) / usual,
          .of_alpha = change_with(which, 4, 16, 256) / usual,
          .of_width = change_with(which, 4, 1, 4096) / change_with(which, 4, 1, 64),
          .trainable = trainable_parameters(which),
          .training = train_lora(which)};
}

struct DerivedSymptoms {
  Amount shift, shift_alone, rank, rank_scaled, alpha, width, width_scaled, adapter, all;
  Amount shift_scatter, rank_scatter, width_scatter;  // two deviations of what is drawn, as shares
};

DerivedSymptoms derive_symptoms(Working& working) {
  const Amount in = 256, out = kLoraOutputs, rank = 4;
  working.say(
      "(1) B must start at zero. Drawn, it adds (x A) B to the pretrained layer's output before the first step: the "
      "model that is fine-tuned is no longer the one that was trained.");
  DerivedSymptoms derived{};
  derived.shift = working.derive(
      "The disturbance at step 0, for x of unit variance, in 256 features, rank 4, over the output of W with variance "
      "1 / in",
      filled("0.02^2 sqrt(in r) = 0.02^2 x sqrt({} x {})", {in, rank}), 0.02 * 0.02 * std::sqrt(in * rank));
  derived.shift_alone = working.derive(
      "... with that defect alone: A is U(-1/sqrt(in), 1/sqrt(in)), so each x A has variance 1/3, and alpha / rank = "
      "1/4",
      filled("0.02 sqrt(r / 3) / r = 0.02 x sqrt({} / 3) / {}", {rank, rank}), 0.02 * std::sqrt(rank / 3) / rank);
  derived.shift_scatter =
      2 * working.derive(
              "What is drawn scatters it by (one deviation), over 16 draws of the 4 x 64 elements of B, the 256 x 4 of "
              "A and the 128 x 4 of x A",
              "sqrt((1 / (2 x 256) + 1 / (2 x 1024) + 1 / (2 x 512)) / 16)",
              std::sqrt((1 / (rank * out) + 1 / (in * rank) + 1 / (kShiftSamples * rank)) / 2 / kShiftDraws),
              Unit::Share);
  working.say(
      "(2) The product must be scaled by alpha / rank. Adam moves every element of B by about the learning rate, "
      "whatever the gradient's size, so a step moves the output by a sum over `rank` terms: with alpha / rank in "
      "front, the sum does not grow with the rank, and a learning rate that was found at one rank holds at another. "
      "Without it alpha does nothing at all.");
  derived.rank = working.derive("The first step at rank 64 over that at rank 4: unscaled", "64 / 4", 64.0 / 4);
  derived.rank_scaled = working.derive("... scaled", "64 / 4 x 4 / 64", 64.0 / 4 * 4 / 64);
  derived.alpha = working.derive("The first step at alpha 16 over that at alpha 1: scaled", "16 / 1", 16);
  const Amount terms = kStepSamples * rank,
               magnitude = std::acos(0) - 1;  // of |N(0, 1)|: variance over squared mean, pi/2 - 1
  derived.rank_scatter =
      2 *
      working.derive(
          "A step of Adam moves an output by a sum of |x A| over the rank; over 48 samples the ratio scatters by (one "
          "deviation)",
          "sqrt((pi / 2 - 1) (1 / (48 x 4) + 1 / (48 x 64)))", std::sqrt(magnitude * (1 / terms + 1 / (terms * 16))),
          Unit::Share);
  working.say(
      "(3) The base layer must be frozen. Otherwise its weights train as well: the memory for gradients and optimizer "
      "state that LoRA is there to save is spent, and saving the adapter alone loses what the base has learned.");
  derived.adapter = working.derive("Trainable parameters, 256 to 64 features, rank 4, frozen",
                                   filled("{} x ({} + {})", {rank, in, out}), cost::lora_parameters(in, out, rank));
  derived.all = working.derive("... not frozen", filled("{} x ({} + {}) + {} x {}", {rank, in, out, in, out}),
                               cost::lora_parameters(in, out, rank) + in * out);
  working.say(
      "(4) A's scale must follow the fan-in, as kaiming-uniform's does (here U(-1/sqrt(in), 1/sqrt(in))): then x A has "
      "the same size at every width. With a constant 0.02 it grows with the square root of the width, and so do the "
      "first updates.");
  derived.width = working.derive("The first step at width 4096 over that at width 64: constant scale",
                                 "sqrt(4096 / 64)", std::sqrt(4096.0 / 64));
  derived.width_scaled = working.derive("... scale by the fan-in", "sqrt(4096 / 64) x sqrt(64 / 4096)", 1);
  derived.width_scatter = 2 * working.derive("... which scatters by (one deviation)", "sqrt((pi / 2 - 1) 2 / (48 x 4))",
                                             std::sqrt(magnitude * 2 / terms), Unit::Share);
  return derived;
}

// Outputs near 1 that are rounded to 24 bits before and after a step of 0.0005, at two alphas.
constexpr double kResolved = 4 * 0x1p-24 / 5e-4;

void claim_symptoms(Working& working, const DerivedSymptoms& derived, const std::vector<LoraSymptoms>& found) {
  enum Place { Library, DrawnB, Unscaled, Unfrozen, Constant, All };
  working.claim_close("All four: the output is disturbed at step 0 by this share", derived.shift, found[All].shift,
                      derived.shift_scatter);
  working.claim_close("(1) alone disturbs it by this share", derived.shift_alone, found[DrawnB].shift,
                      derived.shift_scatter);
  working.claim("LoRALinear does not, to the bit", "0", short_number(found[Library].shift), found[Library].shift == 0);
  working.claim_close("(2) A step at rank 64 moves the output so many times as far as at rank 4", derived.rank,
                      found[Unscaled].of_rank, derived.rank_scatter);
  working.claim_close("LoRALinear's moves it as far at both ranks", derived.rank_scaled, found[Library].of_rank,
                      derived.rank_scatter);
  working.claim("(2) alpha = 16 changes no bit against alpha = 1", "1", short_number(found[Unscaled].of_alpha),
                found[Unscaled].of_alpha == 1);
  working.claim_close("LoRALinear's step is so many times as far", derived.alpha, found[Library].of_alpha, kResolved);
  working.claim_equal("(3) Parameters that train", derived.all, static_cast<Amount>(found[Unfrozen].trainable));
  working.claim_equal("LoRALinear: parameters that train", derived.adapter,
                      static_cast<Amount>(found[Library].trainable));
  working.claim("(3) The base weights have moved after training; LoRALinear's have not, to the bit", "moved; not moved",
                std::string(found[Unfrozen].training.base_moved ? "moved" : "not moved") +
                    (found[Library].training.base_moved ? "; moved" : "; not moved"),
                found[Unfrozen].training.base_moved && !found[Library].training.base_moved);
  working.claim_close("(4) A step at width 4096 moves the output so many times as far as at width 64", derived.width,
                      found[Constant].of_width, derived.width_scatter);
  working.claim_close("LoRALinear's moves it as far at both widths", derived.width_scaled, found[Library].of_width,
                      derived.width_scatter);
}

// The exam's layer without a defect is the library's, given the same A and B.
void claim_mended(Working& working) {
  const LoraCase mended{};
  torch::nn::Linear base(torch::nn::LinearOptions(256, kLoraOutputs).bias(false));
  ExamLoRA exam(base, mended.rank, mended.alpha, {}, "4b.0");
  exam.B.set_data(drawn(exam.B.sizes(), "4b.trained"));
  nn::LoRALinear library(base, nn::LoRALinearOptions(mended.rank, mended.alpha));
  library->lora_A->weight.set_data(exam.A.detach().t().contiguous());
  library->lora_B->weight.set_data(exam.B.detach().t().contiguous());
  const Tensor x = drawn({16, 256}, "4b.x");
  const double difference = relative_difference(library->forward(x), exam.forward(x)), limit = 256 * 0x1p-24;
  working.claim("With the four mended, the exam's layer computes what LoRALinear does",
                "at most " + short_number(limit) + " apart", short_number(difference), difference <= limit);
}

report::Series loss_series(const std::vector<double>& losses) {
  report::Series series;
  for (size_t step = 0; step < losses.size(); ++step) series.x.push_back(static_cast<double>(step));
  series.y = losses;
  return series;
}

void draw_trainings(Working& working, const std::vector<LoraSymptoms>& found) {
  report::Chart defects{.id = "loss",
                        .title = "Training under each defect",
                        .note = "Rank 4, alpha 1, Adam.",
                        .y_label = "loss",
                        .from_zero = true};
  for (size_t i = 0; i < found.size(); ++i) {
    working.answer.names.emplace_back(lora_cases()[i].name);
    defects.curves.push_back({.label = "loss", .run = i, .series = loss_series(found[i].training.losses)});
  }
  report::Chart ranks{.id = "ranks",
                      .title = "Equal alpha, other ranks",
                      .note = "alpha 1, Adam, the same learning rate.",
                      .y_label = "loss",
                      .from_zero = true};
  for (const bool library : {true, false}) {
    for (const int64_t rank : {4, 16, 64}) {
      LoraCase which{.library = library, .rank = rank};
      which.defects.unscaled = !library;
      ranks.curves.push_back(
          {.label = "loss", .run = working.answer.names.size(), .series = loss_series(train_lora(which).losses)});
      working.answer.names.push_back((library ? "LoRALinear, rank " : "not scaled, rank ") + std::to_string(rank));
    }
  }
  working.answer.charts = {std::move(defects), std::move(ranks)};
}

Answer answer_lora_defects(const Settings& settings) {
  Working working(settings);
  working.answer.in_short =
      "B is not zero, so the model changes before training; the product is not scaled by alpha / rank; the base is not "
      "frozen; A's scale does not follow the fan-in.";
  working.answer.listings = {{"The exam's layer", kExamLayer}, {"Mended", kMendedLayer}};
  const DerivedSymptoms derived = derive_symptoms(working);
  std::vector<LoraSymptoms> found;
  Table table{"Each defect and its symptom",
              "Shift: of the output at step 0. Steps: how far the first step of Adam moves the output, as ratios.",
              {"layer", "shift", "rank 64 / 4", "alpha 16 / 1", "width 4096 / 64", "trainable", "base", "last loss"},
              {}};
  for (const NamedCase& item : lora_cases()) {
    const LoraSymptoms& symptoms = found.emplace_back(symptoms_of(item.which));
    table.rows.push_back({item.name, short_number(symptoms.shift), short_number(symptoms.of_rank),
                          short_number(symptoms.of_alpha), short_number(symptoms.of_width),
                          std::to_string(symptoms.trainable), symptoms.training.base_moved ? "moved" : "not moved",
                          short_number(symptoms.training.losses.back())});
  }
  working.answer.tables.push_back(std::move(table));
  claim_symptoms(working, derived, found);
  claim_mended(working);
  draw_trainings(working, found);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion4b;
const Question kQuestion4b = {
    "4b", "A LoRA layer with four defects",
    "A LoRA layer wraps a base layer, takes rank = 4 and alpha = 1.0, makes A [in, rank] and B [rank, out], draws both "
    "from N(0, 0.02^2), and returns base(x) + (x A) B. What is wrong with it, and what does each mistake do?",
    answer_lora_defects};

}  // namespace lathe::app::practice
