// Question 2b: the training loop with two blanks.
#include <ATen/ops/arange.h>
#include <ATen/ops/remainder.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "lathe/nn/modules.h"
#include "lathe/optim/adam.h"
#include "lathe/optim/sgd.h"
#include "lathe/train/step.h"
#include "practice/accumulation.h"
#include "practice/mixer.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr cost::MixerSizes kLoopMixer{
    .sequence_length = 8, .width = 16, .tokens_hidden_size = 32, .channels_hidden_size = 64, .num_blocks = 1};
constexpr int64_t kWindow = 4, kSamples = 32, kPerBatch = 4;  // two windows of four batches
constexpr double kLoopRate = 0.5;

constexpr const char* kLoopCode =
    "def train(model, loader, criterion, optimizer, accumulation_steps=4):\n"
    "    for batch_idx, (inputs, targets) in enumerate(loader):\n"
    "        loss = criterion(model(inputs), targets)\n"
    "        (loss / accumulation_steps).backward()             # first blank\n"
    "        if (batch_idx + 1) % accumulation_steps == 0:\n"
    "            optimizer.step()                               # second blank\n"
    "            optimizer.zero_grad()\n";

struct LoopData {
  Tensor x = drawn({kSamples, 8, 16}, "2b.x", at::kDouble);
  Tensor labels = at::remainder(at::arange(kSamples, at::kLong), SmallMixer::kClasses);
};

Tensor mean_loss(const Tensor& logits, const Tensor& labels) {
  return nn::cross_entropy_sum(logits, labels) / labels.size(0);
}

std::vector<Tensor> gradient_of(const SmallMixer& model, const Tensor& loss) {
  const auto parameters = model.parameters();
  forget_gradients(parameters);
  loss.backward();
  std::vector<Tensor> gradients = gradients_of(parameters);
  forget_gradients(parameters);
  return gradients;
}

// Of the mean loss over samples [first, first + count).
std::vector<Tensor> batch_gradient(const SmallMixer& model, int64_t first, int64_t count) {
  const LoopData data;
  return gradient_of(model,
                     mean_loss(model.forward(data.x.narrow(0, first, count)), data.labels.narrow(0, first, count)));
}

std::vector<optim::Trained> trained_of(const SmallMixer& model) {
  return optim::with_weight_decay(model.parameters(), 0);
}

// What a filling did in one pass over some batches of four samples.
struct LoopRun {
  std::vector<std::vector<Tensor>> gradients;  // before each step
  std::vector<Tensor> left;                    // after the last
  std::vector<double> losses;
  std::vector<Tensor> moves;  // of the weights
};

template <typename Optimizer = optim::Sgd>
LoopRun run_loop(Filling filling, int64_t num_batches = kSamples / kPerBatch, int num_epochs = 1) {
  const SmallMixer model(kLoopMixer, "2b", at::kDouble);
  const LoopData data;
  Optimizer optimizer(trained_of(model));
  ExamLoop loop{.model = [&](const Tensor& x) { return model.forward(x); },
                .loader = {},
                .criterion = mean_loss,
                .optimizer = optimizer,
                .lr = kLoopRate,
                .accumulation_steps = kWindow};
  for (int64_t i = 0; i < num_batches; ++i) {
    const int64_t first = i * kPerBatch % kSamples;
    loop.loader.push_back({data.x.narrow(0, first, kPerBatch), data.labels.narrow(0, first, kPerBatch)});
  }
  LoopRun run;
  loop.before_step = [&] { run.gradients.push_back(gradients_of(model.parameters())); };
  for (int epoch = 0; epoch < num_epochs; ++epoch) {
    const auto losses = loop.run(filling);
    run.losses.insert(run.losses.end(), losses.begin(), losses.end());
  }
  run.left = gradients_of(model.parameters());
  const SmallMixer start(kLoopMixer, "2b", at::kDouble);
  const auto before = start.parameters(), after = model.parameters();
  for (size_t i = 0; i < after.size(); ++i) run.moves.push_back(after[i].second.detach() - before[i].second.detach());
  return run;
}

double norm_of(const std::vector<Tensor>& tensors) {
  double squares = 0;
  for (const Tensor& tensor : tensors) squares += tensor.square().sum().item<double>();
  return std::sqrt(squares);
}

std::vector<Tensor> scaled(std::vector<Tensor> tensors, double factor) {
  for (Tensor& tensor : tensors) tensor = tensor * factor;
  return tensors;
}

// The samples above as a task of the library's own loop.
class LoopTask : public train::Task {
 public:
  SmallMixer mixer{kLoopMixer, "2b", at::kDouble};
  torch::nn::Module& model() override { return *mixer.blocks.front(); }
  optim::NamedTensors trained_parameters() override { return mixer.parameters(); }
  int64_t num_samples() const override { return kSamples; }
  std::map<std::string, uint64_t> fingerprints() const override { return {}; }
  int64_t num_items(const std::vector<int64_t>& samples) const override { return static_cast<int64_t>(samples.size()); }
  BatchLoss loss(const std::vector<int64_t>& samples, const nn::Pass&) override {
    const Tensor rows = at::tensor(samples, at::kLong);
    return {nn::cross_entropy_sum(mixer.forward(data_.x.index_select(0, rows)), data_.labels.index_select(0, rows)),
            num_items(samples)};
  }
  Json describe(const std::vector<int64_t>&) const override { return {}; }
  bool has_evaluation() const override { return false; }
  train::Evaluation evaluate(const std::function<bool()>&) override { return {}; }
  const std::vector<std::string>& labels() const override { return labels_; }
  Json show(int64_t) const override { return {}; }
  std::vector<Result> results() override { return {}; }

 private:
  LoopData data_;
  std::vector<std::string> labels_;
};

// The weights after one step of train::Stepper over windows of these sizes.
std::vector<Tensor> stepped(const std::vector<int64_t>& micro_batches) {
  LoopTask task;
  recipe::Recipe recipe;
  recipe.optimizer.type = recipe::OptimizerType::Sgd;
  recipe.optimizer.lr = kLoopRate;
  recipe.optimizer.weight_decay = recipe.optimizer.clip_grad_norm = 0;
  recipe.optimizer.schedule = recipe::ScheduleType::Constant;
  train::Stepper stepper(task, recipe, 1);
  train::Window window;
  int64_t next = 0;
  for (const int64_t size : micro_batches) {
    auto& samples = window.emplace_back();
    for (int64_t i = 0; i < size; ++i) samples.push_back(next++);
  }
  train::StepMetrics metrics;
  stepper.run(0, window, metrics);
  std::vector<Tensor> weights;
  for (const auto& [name, parameter] : task.mixer.parameters()) weights.push_back(parameter.detach());
  return weights;
}

void claim_close_gradients(Working& working, const std::string& text, const std::vector<Tensor>& measured,
                           const std::vector<Tensor>& expected) {
  const double difference = largest_difference(measured, expected);
  working.claim(text, "at most 1e-12 apart", short_number(difference), difference <= kApart);
}

std::vector<Tensor> sum_of(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  std::vector<Tensor> sums;
  for (size_t i = 0; i < a.size(); ++i) sums.push_back(a[i] + b[i]);
  return sums;
}

// What each filling does, told by the run.
void show_filling(Working& working, const char* title, Filling filling, std::string symptom) {
  working.answer.listings.push_back({title, filling_code(filling), std::move(symptom)});
}

std::string norms_text(const std::vector<Tensor>& found, const std::vector<Tensor>& right) {
  return "the gradient before the step has norm " + short_number(norm_of(found)) + ", that of the batch of " +
         std::to_string(kWindow * kPerBatch) + " has " + short_number(norm_of(right));
}

void measure_fillings(Working& working, const std::string& variant, Amount factor, Amount steps, Amount batches) {
  const SmallMixer model(kLoopMixer, "2b", at::kDouble);
  const int64_t window_samples = kWindow * kPerBatch;
  const auto whole = batch_gradient(model, 0, window_samples);
  const LoopRun mended = run_loop(Filling::Mended);
  const auto wanted = [&](const char* id) { return variant.empty() || variant == id; };
  const auto counted = [](const LoopRun& run) { return static_cast<Amount>(run.gradients.size()); };
  claim_close_gradients(working, "Mended: the window's gradient is that of one batch of 16", mended.gradients[0],
                        whole);
  working.claim_equal("Mended: optimizer steps", steps, counted(mended));
  show_filling(working, "Mended, as it runs", Filling::Mended,
               "Right: " + norms_text(mended.gradients[0], whole) + "; " + amount_text(counted(mended)) + " steps.");
  if (wanted("undivided")) {
    const LoopRun undivided = run_loop(Filling::Undivided);
    const double too_large = norm_of(undivided.gradients[0]) / norm_of(whole);
    working.claim_close("Without the division: the gradient is so many times too large", factor, too_large, kApart);
    show_filling(
        working, "Wrong: without the division", Filling::Undivided,
        "Symptom: " + norms_text(undivided.gradients[0], whole) + ", " + short_number(too_large) + " times too large.");
  }
  if (wanted("zero-first")) {
    const LoopRun zero_first = run_loop(Filling::ZeroFirst);
    const auto last = scaled(batch_gradient(model, window_samples - kPerBatch, kPerBatch), 1.0 / kWindow);
    claim_close_gradients(
        working, "zero_grad before every backward pass: only the last micro-batch counts, a quarter of its gradient",
        zero_first.gradients[0], last);
    show_filling(working, "Wrong: zero_grad before every backward pass", Filling::ZeroFirst,
                 "Symptom: " + norms_text(zero_first.gradients[0], whole) +
                     "; it is a quarter of the last micro-batch's, the other three are lost.");
  }
  if (wanted("step-always")) {
    const LoopRun always = run_loop(Filling::StepAlways);
    working.claim_equal("Step and zero_grad after every micro-batch: optimizer steps", batches, counted(always));
    claim_close_gradients(working, "... the first of them with a quarter of the first micro-batch's gradient",
                          always.gradients[0], scaled(batch_gradient(model, 0, kPerBatch), 1.0 / kWindow));
    show_filling(working, "Wrong: step and zero_grad after every micro-batch", Filling::StepAlways,
                 "Symptom: " + amount_text(counted(always)) + " steps in place of " + amount_text(counted(mended)) +
                     ", each with a quarter of one micro-batch's gradient: nothing accumulates.");
  }
  if (!wanted("never-zero")) return;
  const LoopRun never_zero = run_loop(Filling::NeverZero);
  claim_close_gradients(working, "No zero_grad: the second window steps with the first window's gradient and its own",
                        never_zero.gradients[1], sum_of(mended.gradients[0], mended.gradients[1]));
  show_filling(working, "Wrong: no zero_grad", Filling::NeverZero,
               "Symptom: the second step's gradient has norm " + short_number(norm_of(never_zero.gradients[1])) +
                   " where the window's own has " + short_number(norm_of(mended.gradients[1])) +
                   ": it still holds the first window's, and grows with every window.");
}

// From the second moment's square root Adam's first step is g / (|g| + eps): of any multiple of g almost the same.
void measure_adam(Working& working) {
  const LoopRun adam = run_loop<optim::Adam>(Filling::Mended, kWindow),
                undivided = run_loop<optim::Adam>(Filling::Undivided, kWindow);
  const double eps = optim::AdamOptions().eps;
  std::vector<Tensor> apart, promised, step;
  for (size_t i = 0; i < adam.moves.size(); ++i) {
    const Tensor g = adam.gradients[0][i];
    apart.push_back(undivided.moves[i] - adam.moves[i]);
    step.push_back(g / (g.abs() + eps));
    promised.push_back(g / (g.abs() + eps / kWindow) - step.back());
  }
  const Amount share = working.derive(
      "Adam hides a missing division (clipping does not): its first step is g / (|g| + eps), and 4 g differ from g by",
      filled("|g / (|g| + {} / {}) - g / (|g| + {})|, as a share", {eps, kWindow, eps}),
      norm_of(promised) / norm_of(step), Unit::Share);
  // The moves are differences of weights near 1, of 53 bits; they differ in their eighth digit.
  working.claim_close("Adam: the step without the division differs from the right one by this share", share,
                      norm_of(apart) / norm_of(adam.moves), 1e-4, Unit::Share);
}

void measure_gaps(Working& working) {
  SmallMixer model(kLoopMixer, "2b", at::kDouble);
  const auto whole = batch_gradient(model, 0, 16);
  // Micro-batches of 1, 2, 3 and 10 samples: the mean of their means is not the mean.
  std::vector<Tensor> means = scaled(whole, 0);
  const LoopData data;
  const Tensor logits = model.forward(data.x.narrow(0, 0, 16));
  Tensor weighted = at::zeros({}, at::kDouble);
  int64_t first = 0;
  for (const int64_t size : {1, 2, 3, 10}) {
    means = sum_of(means, scaled(batch_gradient(model, first, size), 1.0 / kWindow));
    weighted = weighted + nn::cross_entropy_sum(logits.narrow(0, first, size), data.labels.narrow(0, first, size)) /
                              (kWindow * size);
    first += size;
  }
  const double from_weighted = largest_difference(means, gradient_of(model, weighted)),
               from_mean = largest_difference(means, whole);
  working.claim(
      "Micro-batches of 1, 2, 3 and 10 samples: a sample of the first weighs 1 / (4 x 1), of the last 1 / (4 x 10), "
      "not 1 / 16",
      "at most 1e-12 from the sum so weighted, more from the mean's gradient",
      short_number(from_weighted) + ", " + short_number(from_mean), from_weighted <= kApart && from_mean > kApart);
  claim_close_gradients(working, "Lathe's Stepper divides by the window's items: the step of 1, 2, 3, 10 is that of 16",
                        stepped({1, 2, 3, 10}), stepped({16}));
  const LoopRun partial = run_loop(Filling::Mended, kWindow + 2);
  working.claim_equal("Optimizer steps in 6 batches",
                      working.derive("Optimizer steps in 6 batches", "6 / 4, rounded down", std::floor(6.0 / kWindow)),
                      static_cast<Amount>(partial.gradients.size()));
  const auto parameters = model.parameters();
  for (size_t i = 0; i < parameters.size(); ++i) parameters[i].second.detach().add_(partial.moves[i]);
  claim_close_gradients(working, "... and drops the partial window: half of the gradient of the last 2 batches is left",
                        partial.left, scaled(batch_gradient(model, kWindow * kPerBatch, 2 * kPerBatch), 2.0 / kWindow));
  claim_close_gradients(working, "... for Lathe's Stepper it is a step of its own: 4, 2 is 6", stepped({4, 2}),
                        stepped({6}));
}

struct NamedFilling {
  const char *id, *name;  // as --variant takes it, and on the chart
  Filling filling;
};
constexpr NamedFilling kFillings[] = {{"", "mended", Filling::Mended},
                                      {"undivided", "without the division", Filling::Undivided},
                                      {"zero-first", "zero_grad first", Filling::ZeroFirst},
                                      {"step-always", "step always", Filling::StepAlways},
                                      {"never-zero", "no zero_grad", Filling::NeverZero}};

void draw_losses(Working& working, const std::string& variant) {
  constexpr int kEpochs = 12;
  report::Chart chart{.id = "loss",
                      .title = "Loss of every batch",
                      .note = "SGD, learning rate 0.5, two windows per pass. What grows beyond bounds is cut at 2.",
                      .y_label = "loss",
                      .x_label = "batch"};
  constexpr double kHighest = 2;
  for (const NamedFilling& item : kFillings) {
    if (item.filling != Filling::Mended && !variant.empty() && variant != item.id) continue;
    const LoopRun run = run_loop(item.filling, kSamples / kPerBatch, kEpochs);
    report::Series series;
    for (const double loss : run.losses) {
      series.x.push_back(static_cast<double>(series.x.size()));
      series.y.push_back(std::min(loss, kHighest));
    }
    chart.curves.push_back({.label = "loss", .run = working.answer.names.size(), .series = std::move(series)});
    working.answer.names.emplace_back(item.name);
  }
  working.answer.charts.push_back(std::move(chart));
}

Answer answer_accumulation_loop(const Settings& settings) {
  Working working(settings);
  working.answer.in_short =
      "(loss / accumulation_steps).backward(); then, at the end of a window, optimizer.step() and "
      "optimizer.zero_grad().";
  working.answer.listings = {{"The loop, its two blanks filled", kLoopCode}};
  working.say(
      "First blank: (loss / accumulation_steps).backward(). The criterion is a mean over the micro-batch, so the mean "
      "over the window is the mean of the micro-batches' means; LibTorch adds the gradients up.");
  working.say(
      "Second blank: optimizer.step(), then optimizer.zero_grad(). The step uses the window's sum; clearing it only "
      "now is what lets it add up, and clearing it at all is what keeps it out of the next window.");
  working.say(
      "What the loop still lacks: a step for the partial window at the end of the data; the right weights when "
      "micro-batches have different numbers of items, as texts have; clipping, once per window before the step; a "
      "schedule that counts optimizer steps, not batches. Lathe's own loop (train::Stepper) has them.");
  const auto batches = static_cast<Amount>(kSamples / kPerBatch);
  const Amount factor = working.derive("The gradient without the division, over the right one", "accumulation_steps",
                                       static_cast<Amount>(kWindow));
  const Amount steps = working.derive("Optimizer steps in a pass over 8 batches", filled("{} / {}", {batches, kWindow}),
                                      batches / kWindow);
  const Amount always = working.derive("... when the step stands outside of the condition", "one per batch", batches);
  measure_fillings(working, settings.variant, factor, steps, always);
  if (settings.variant.empty()) {
    measure_adam(working);
    measure_gaps(working);
  }
  draw_losses(working, settings.variant);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion2b;
const Question kQuestion2b = {
    "2b",
    "The accumulation loop with two blanks",
    "A training loop is given a model, a data loader, a criterion, an optimizer and accumulation_steps = 4, and has "
    "computed `loss` for a batch. What stands after the loss, and what happens when (batch_idx + 1) is a multiple of "
    "accumulation_steps? What does each wrong filling do?",
    answer_accumulation_loop,
    /*has_long_run=*/false,
    {"undivided", "zero-first", "step-always", "never-zero"}};

}  // namespace lathe::app::practice
