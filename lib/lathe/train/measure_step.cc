#include "lathe/train/measure_step.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "lathe/base/memory.h"
#include "lathe/nn/modules.h"
#include "lathe/train/classifier.h"
#include "lathe/train/memory_meter.h"
#include "lathe/train/profiler.h"
#include "lathe/train/run_state.h"
#include "lathe/train/step.h"
#include "lathe/train/summary.h"

namespace lathe::train {
namespace {

// The highest live bytes of each phase of a step, in the order in which they first ended.
class PhasePeaks {
 public:
  bool has(const std::string& phase) const {
    return std::any_of(peaks_.begin(), peaks_.end(), [&](const auto& peak) { return peak.first == phase; });
  }
  void end(const std::string& phase) {
    if (!has(phase)) peaks_.emplace_back(phase, 0);
    for (auto& [name, bytes] : peaks_)
      if (name == phase) bytes = std::max(bytes, MemoryMeter::peak_bytes());
    MemoryMeter::reset_peak();
  }
  const std::vector<std::pair<std::string, int64_t>>& peaks() const { return peaks_; }

 private:
  std::vector<std::pair<std::string, int64_t>> peaks_;
};

// The model of a recipe and a batch for it, made up: texts of the greatest length, or pictures.
class WorstCaseTask : public Task {
 public:
  explicit WorstCaseTask(const recipe::Recipe& recipe) : resolved_(recipe::resolve_model(recipe)) {
    const auto num_labels = std::max<int64_t>(2, static_cast<int64_t>(resolved_.labels.size()));
    classifier_.model = build_skeleton(resolved_.config.arch, num_labels);
    prepare_model(model(), recipe, resolved_, num_labels);
  }

  torch::nn::Module& model() override { return *classifier_.model; }
  optim::NamedTensors trained_parameters() override { return adapters::trainable_parameters(model()); }
  int64_t num_samples() const override { return 1; }
  std::map<std::string, uint64_t> fingerprints() const override { return {}; }
  int64_t num_items(const std::vector<int64_t>& samples) const override { return static_cast<int64_t>(samples.size()); }

  BatchLoss loss(const std::vector<int64_t>& samples, const nn::Pass& pass) override {
    const auto count = static_cast<int64_t>(samples.size());
    if (phases.has("forward")) phases.end("backward");
    const int64_t before = MemoryMeter::live_bytes();
    const Tensor logits = arch::sees_images(resolved_.config.arch) ? classifier_.images().forward(pixels(count), pass)
                                                                   : classifier_.texts().forward(tokens(count), pass);
    // At most: what an earlier micro-batch left for its balance loss goes meanwhile.
    activation_bytes = std::max(activation_bytes, MemoryMeter::live_bytes() - before);
    phases.end(model().is_training() ? "forward" : "evaluation");
    return {nn::cross_entropy_sum(logits, at::zeros({count}, at::kLong)), count * resolved_.max_length};
  }
  Json describe(const std::vector<int64_t>&) const override { return Json::array(); }
  bool has_evaluation() const override { return false; }
  Evaluation evaluate(const std::function<bool()>&) override { return {}; }
  const std::vector<std::string>& labels() const override { return resolved_.labels; }
  Json show(int64_t) const override { return {}; }
  std::vector<Result> results() override { return {}; }

  int64_t activation_bytes = 0;
  PhasePeaks phases;

 private:
  models::TokenBatch tokens(int64_t count) {
    const int64_t vocabulary = arch::vocab_size(resolved_.config.arch);
    std::vector<std::vector<int64_t>> ids(static_cast<size_t>(count)), types(ids.size());
    for (size_t i = 0; i < ids.size(); ++i) {
      types[i].assign(static_cast<size_t>(resolved_.max_length), 0);
      for (int64_t place = 0; place < resolved_.max_length; ++place) ids[i].push_back((next_id_ += 7) % vocabulary);
    }
    return models::pack_tokens(ids, types);
  }
  Tensor pixels(int64_t count) const {
    const auto& mixer = std::get<arch::MixerArch>(resolved_.config.arch);
    const int64_t size = mixer.num_channels * mixer.image_height * mixer.image_width;
    // No two patches alike: routers send equal ones to one expert.
    return at::arange(count * size, at::kFloat)
        .mul_(0.37)
        .sin_()
        .view({count, mixer.num_channels, mixer.image_height, mixer.image_width});
  }

  recipe::ResolvedModel resolved_;
  Classifier classifier_;
  int64_t next_id_ = 0;
};

void note_loads(const StepMetrics& metrics, std::vector<cost::ExpertLoad>& loads) {
  if (!metrics.balance) return;
  const BalanceMetrics& balance = *metrics.balance;
  loads.resize(balance.load.size(), {0, 1});
  for (size_t layer = 0; layer < loads.size(); ++layer) {
    const std::vector<double>& shares = balance.load[layer];
    const double share = *std::max_element(shares.begin(), shares.end());
    loads[layer].fullest = std::max(loads[layer].fullest, share * static_cast<double>(shares.size()));
    loads[layer].dropped = std::min(loads[layer].dropped, balance.dropped[layer]);
  }
}

// Of the step after the two.
void count_operations(Stepper& stepper, const Window& window, MeasuredStep& result) {
  Profiler profiler(1);
  {
    const Profiler::Recording recording(profiler, /*step=*/3);
    StepMetrics metrics;
    stepper.run(2, window, metrics);
    note_loads(metrics, result.counted_loads);
  }
  const report::Profile profile = profiler.take();
  result.flops = std::accumulate(profile.events.begin(), profile.events.end(), int64_t{0},
                                 [](int64_t sum, const report::ProfileEvent& event) { return sum + event.flops; });
}

}  // namespace

MeasuredStep measure_step(const recipe::Recipe& recipe) {
  if (recipe.training.threads > 0) at::set_num_threads(static_cast<int>(recipe.training.threads));
  MemoryMeter::install();
  MeasuredStep result;
  result.base_bytes = measure_base_bytes();
  const int64_t before = MemoryMeter::live_bytes();
  int64_t last = before;
  const auto allocated_since_last = [&last] {
    const int64_t live = MemoryMeter::live_bytes();
    return live - std::exchange(last, live);
  };
  WorstCaseTask task(recipe);
  result.weight_bytes = mapped_bytes(task.model()) + allocated_since_last();
  task.model().train();
  Stepper stepper(task, recipe, /*num_steps=*/3);
  result.optimizer_bytes = allocated_since_last();
  result.peak_bytes = MemoryMeter::peak_bytes() - before + mapped_bytes(task.model());  // of loading
  MemoryMeter::reset_peak();
  const std::vector<int64_t> samples(static_cast<size_t>(recipe.training.batch_size.samples.value_or(1)), 0);
  const Window window(static_cast<size_t>(recipe.training.gradient_accumulation_steps), samples);
  StepMetrics metrics;
  optim::NamedTensors weights, state;
  for (int64_t step = 0; step < 2; ++step) {
    metrics = {};
    stepper.run(step, window, metrics);
    note_loads(metrics, result.loads);
    if (step > 0 || !recipe.training.saves_between_steps()) continue;
    allocated_since_last();
    weights = copies(with_selection_biases(task.trained_parameters(), task.model()));
    state = copies(stepper.optimizer().state());
    result.checkpoint_bytes = allocated_since_last();
  }
  for (const optim::Trained& item : stepper.optimizer().trained()) {
    const auto& without = stepper.without_gradient();
    if (std::find(without.begin(), without.end(), item.name) == without.end())
      result.gradient_bytes += static_cast<int64_t>(item.parameter.nbytes());
  }
  if (!recipe.data.eval.empty() || recipe.data.eval_fraction > 0) {
    const at::NoGradGuard no_grad;
    task.model().eval();
    task.loss(samples, nn::Pass());
    task.model().train();
  }
  task.phases.end(task.phases.has("evaluation") ? "evaluation" : "backward");
  for (const auto& [phase, bytes] : task.phases.peaks()) {
    result.phase_peaks.emplace_back(phase, bytes - before + mapped_bytes(task.model()));
    result.peak_bytes = std::max(result.peak_bytes, result.phase_peaks.back().second);
  }
  result.activation_bytes = task.activation_bytes;
  result.peak_rss_bytes = peak_resident_memory_bytes();
  result.seconds = metrics.seconds;
  result.micro_batch_seconds = metrics.seconds / static_cast<double>(window.size());
  count_operations(stepper, window, result);
  return result;
}

}  // namespace lathe::train
