#include "lathe/train/trainer.h"

#include <ATen/Parallel.h>
#include <ATen/ops/isfinite.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>
#include <utility>

#include "lathe/adapters/lora.h"
#include "lathe/base/clock_meter.h"
#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/memory.h"
#include "lathe/base/text.h"
#include "lathe/config/bind.h"
#include "lathe/cost/fit.h"
#include "lathe/data/windows.h"
#include "lathe/report/event_writer.h"
#include "lathe/train/checkpoint_writer.h"
#include "lathe/train/classifier_task.h"
#include "lathe/train/memory_meter.h"
#include "lathe/train/profiler.h"
#include "lathe/train/results.h"
#include "lathe/train/resume.h"
#include "lathe/train/run_state.h"
#include "lathe/train/signals.h"
#include "lathe/train/summary.h"

namespace lathe::train {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kProfileRows = 20;  // of the table that is shown; the file has them all

Json finite_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json to_json(const StepMetrics& metrics) {
  Json line = {{"step", metrics.step},
               {"epoch", metrics.epoch},
               {"loss", finite_or_null(metrics.loss)},
               {"lr", metrics.lr},
               {"grad_norm", finite_or_null(metrics.grad_norm)},
               {"tokens", metrics.tokens},
               {"seconds", metrics.seconds},
               {"tokens_per_second", static_cast<double>(metrics.tokens) / metrics.seconds},
               {"peak_rss_bytes", metrics.peak_rss_bytes}};
  if (metrics.balance) line.update(metrics.balance->to_json());
  return line;
}

std::string hex(uint64_t value) {
  std::string text(16, '0');
  for (size_t i = 0; i < 16; ++i) text[15 - i] = "0123456789abcdef"[(value >> (4 * i)) & 15];
  return text;
}

int64_t bytes_of(const optim::NamedTensors& tensors) {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += static_cast<int64_t>(tensor.nbytes());
  return bytes;
}

// The loop over the steps of one run, with its directory.
class Run {
 public:
  // `settled` is `recipe` with its open choices made.
  Run(const recipe::Recipe& recipe, const recipe::Recipe& settled, std::unique_ptr<Task> task, cost::Plan plan,
      bool resume, TrainObserver& observer)
      : recipe_(recipe),
        training_(recipe.training),
        observer_(observer),
        task_(std::move(task)),
        plan_(std::move(plan)),
        windows_(task_->num_samples(), *training_.batch_size.samples, training_.gradient_accumulation_steps,
                 recipe.data.shuffle, static_cast<uint64_t>(training_.seed)),
        num_steps_(training_.max_steps.value_or(training_.epochs.value_or(1) * windows_.steps_per_epoch())),
        directory_(recipe.output.dir.resolved, resume),
        stepper_(*task_, settled, num_steps_),
        writer_(directory_, training_.keep_checkpoints) {
    for (const auto& [name, hash] : task_->fingerprints()) state_.fingerprints[name] = hex(hash);
    state_.environment = bits_decided_by();
    check_disk();
    task_->model().train();
    if (resume) restore();
    if (is_published()) return;
    write_recipe(directory_, recipe);
    if (recipe.output.tensorboard) events_.emplace(directory_.path() / "tensorboard", resume ? state_.step + 1 : 0);
  }

  void run(int64_t profile_steps) {
    if (profile_steps > 0) profiler_.emplace(profile_steps);
    first_step_ = state_.step;
    base_bytes_ = measure_base_bytes();
    observer_.on_start(first_step_, num_steps_);
    warn_about_metrics(directory_.flush_metrics());
    if (is_published())
      return observer_.on_warning(directory_.path().string() + ": this run is finished" +
                                  (state_.stopped_early ? ", stopped early" : ""));
    if (is_finished())
      observer_.on_note("nothing is left to train after step " + std::to_string(first_step_) + " of " +
                        std::to_string(num_steps_) + ": its weights are published");
    last_checkpoint_ = Clock::now();
    if (state_.evaluation_pending) evaluate();  // the run was stopped in the middle of it
    while (!is_finished()) {
      train_step();
      if (evaluation_is_due()) evaluate();
      write_due_checkpoint();
    }
    if (profiler_) publish_profile();
    finish_checkpoint(/*required=*/true);
    warn_about_metrics(directory_.flush_metrics());
    publish();
  }

 private:
  bool is_finished() const { return state_.step >= num_steps_ || state_.stopped_early; }
  bool is_published() const { return is_finished() && are_published(directory_, state_, task_->results()); }

  void train_step() {
    std::optional<Profiler::Recording> recording;
    if (profiler_ && state_.step > first_step_) recording.emplace(*profiler_, state_.step + 1);
    StepMetrics metrics;
    const Window window = windows_.window(state_.step);
    if (state_.step + 1 < num_steps_) stepper_.announce(state_.step + 1, windows_.window(state_.step + 1));
    const StepOutcome outcome = stepper_.run(state_.step, window, metrics);
    if (outcome == StepOutcome::Stopped) interrupt();
    if (outcome == StepOutcome::NonFinite) handle_nonfinite(metrics, window);
    ++state_.step;
    metrics.epoch = windows_.epoch_after(state_.step);
    {
      RECORD_USER_SCOPE("metrics and progress");
      const ClockMeter meter(CLOCK_THREAD_CPUTIME_ID, overheads_.metrics_cpu);
      record(to_json(metrics));
      observer_.on_step(metrics);
    }
    if (state_.step == 1) warn_about_missing_gradients();
    const std::string collapse = metrics.balance ? collapse_.see(state_.step, *metrics.balance) : "";
    if (!collapse.empty()) observer_.on_warning(collapse);
    recording.reset();
    if (profiler_ && profiler_->is_done()) publish_profile();
  }

  void publish_profile() {
    const report::Profile profile = profiler_->take();
    profiler_.reset();
    if (profile.events.empty()) return observer_.on_warning("nothing was profiled: the first step only warms up");
    const auto peak = report::MachinePeak::read(config::cache_directory() + "/machine.json");
    for (const std::string& line : report::operator_table(profile, peak, kProfileRows)) observer_.on_note(line);
    const std::string place = (directory_.path() / "profile").string();
    try {
      directory_.publish("profile", [&](const auto& path) { report::write_profile(profile, peak, path); });
      observer_.on_note(place + "/trace.json opens in chrome://tracing and in Perfetto");
    } catch (const Error& error) {
      observer_.on_warning(std::string(error.what()) + "; no profile was written, training goes on");
    }
  }

  void record(const Json& line) {
    warn_about_metrics(directory_.append_metrics(line));
    if (!events_) return;
    std::vector<std::pair<std::string, double>> scalars;
    for (const auto& [key, value] : line.items()) {
      if (key != "step" && value.is_number()) scalars.emplace_back(key, value.get<double>());
    }
    const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    try {
      events_->add_scalars(line["step"], now, scalars);
    } catch (const Error& error) {
      observer_.on_warning(std::string(error.what()) + "; no more TensorBoard events are written");
      events_.reset();
    }
  }

  void warn_about_metrics(const std::string& problem) {
    if (!problem.empty() && !metrics_warned_)
      observer_.on_warning((directory_.path() / "metrics.jsonl").string() + ": cannot write: " + problem +
                           "; lines wait in memory, training goes on");
    metrics_warned_ = !problem.empty();
  }

  void warn_about_missing_gradients() {
    const auto& names = stepper_.without_gradient();
    if (names.empty()) return;
    observer_.on_warning(std::to_string(names.size()) + " trained parameters got no gradient in the first step, " +
                         names.front() + " among them");
  }

  // Nothing has changed but the count; the step is left out or ends the run.
  void handle_nonfinite(const StepMetrics& metrics, const Window& window) {
    const bool few = state_.note_nonfinite(metrics.step);
    const bool may_skip = few && training_.on_nonfinite == recipe::OnNonfinite::Skip;
    const std::string step = "step " + std::to_string(metrics.step);
    const std::string what = std::isfinite(metrics.loss) ? "the gradient" : "the loss";
    if (may_skip) return observer_.on_warning(step + ": " + what + " is not finite; the step is left out");
    const std::string source = stepper_.find_nonfinite(metrics.step - 1, window);
    const std::filesystem::path dump = directory_.path() / ("nonfinite-step-" + std::to_string(metrics.step) + ".json");
    write_dump(dump, metrics, source, window);
    const bool saved = state_.step > 0 && nonfinite_weight().empty();
    if (saved) {
      begin_checkpoint(/*going_on=*/false);
      finish_checkpoint(/*required=*/false);
    }
    throw Error(ErrorKind::Numeric,
                Diagnostic{step, 0, 0, "",
                           what + " is not finite" + (source.empty() ? "" : ", first in " + source) +
                               (saved ? "; the weights are those of the step before" : "") + "; see " + dump.string(),
                           "lower optimizer.lr, or look at the data of this step"});
  }

  void write_dump(const std::filesystem::path& path, const StepMetrics& metrics, const std::string& source,
                  const Window& window) {
    Json batches = Json::array();
    for (const auto& samples : window) batches.push_back(task_->describe(samples));
    const Json content = {{"step", metrics.step},
                          {"loss", finite_or_null(metrics.loss)},
                          {"grad_norm", finite_or_null(metrics.grad_norm)},
                          {"first_nonfinite", source},
                          {"nonfinite_steps", state_.nonfinite},
                          {"micro_batches", std::move(batches)}};
    try {
      write_file_atomically(path, content.dump(1) + "\n");
    } catch (const Error& error) {
      observer_.on_warning(error.what());
    }
  }

  bool evaluation_is_due() const {
    if (!task_->has_evaluation()) return false;
    const int64_t every = training_.eval_every_steps > 0 ? training_.eval_every_steps : windows_.steps_per_epoch();
    return state_.step % every == 0 || state_.step == num_steps_;
  }

  void evaluate() {
    state_.evaluation_pending = true;
    task_->model().eval();
    Evaluation result;
    try {
      result = task_->evaluate(stop_requested);
    } catch (const Error& error) {
      task_->model().train();
      if (error.kind() == ErrorKind::Interrupted) interrupt();
      throw;
    }
    task_->model().train();
    Json line = {{"step", state_.step}, {"epoch", windows_.epoch_after(state_.step)}};
    line.update(to_json(result));
    record(line);
    state_.evaluation_pending = false;
    observer_.on_evaluation(state_.step, result);
    const bool is_best = training_.keep_best && note_best(result, training_.keep_best->measure, state_.best);
    best_is_new_ |= is_best;
    if (is_best || !training_.keep_best) write_evaluation(result);
    if (!training_.early_stopping) return;
    note_best(result, training_.early_stopping->measure, state_.early);
    state_.stopped_early = state_.early && state_.early->evaluations_since >= training_.early_stopping->patience;
    if (state_.stopped_early)
      observer_.on_note("stopped early: no better evaluation since step " + std::to_string(state_.early->step));
  }

  bool note_best(const Evaluation& result, recipe::Measure measure, std::optional<Best>& best) const {
    return note_evaluation(best, measure, measure_of(result, measure), state_.step);
  }

  // The evaluation of what would be published now, for `lathe report`.
  void write_evaluation(const Evaluation& result) {
    Json json = classes_to_json(result, task_->labels());
    json["step"] = state_.step;
    json["samples"] = result.samples;
    json["worst"] = Json::array();
    for (const Mistaken& mistaken : result.worst) {
      Json shown = task_->show(mistaken.sample);
      shown["truth"] = mistaken.truth;
      shown["predicted"] = mistaken.predicted;
      shown["truth_probability"] = mistaken.truth_probability;
      shown["predicted_probability"] = mistaken.predicted_probability;
      json["worst"].push_back(std::move(shown));
    }
    try {
      write_file_atomically(directory_.path() / "evaluation.json", json.dump() + "\n");
    } catch (const Error& error) {
      observer_.on_warning(std::string(error.what()) + "; training goes on");
    }
  }

  void write_due_checkpoint() {
    const double minutes = std::chrono::duration<double>(Clock::now() - last_checkpoint_).count() / 60;
    const bool by_time = training_.checkpoint_every_minutes > 0 && minutes >= training_.checkpoint_every_minutes;
    const bool by_steps = training_.checkpoint_every_steps > 0 && state_.step % training_.checkpoint_every_steps == 0;
    const bool by_best = std::exchange(best_is_new_, false);
    const bool by_signal = take_checkpoint_request();
    if (by_time || by_steps || by_best || is_finished()) {
      begin_checkpoint(/*going_on=*/!is_finished());
    } else if (by_signal) {
      begin_checkpoint(/*going_on=*/false);
      finish_checkpoint(/*required=*/false);
    }
  }

  optim::NamedTensors saved_tensors() const {
    return with_selection_biases(task_->trained_parameters(), task_->model());
  }

  // The name of a trained weight that is not finite, or nothing.
  std::string nonfinite_weight() const {
    for (const auto& [name, tensor] : saved_tensors()) {
      if (!tensor.isfinite().all().item<bool>()) return name;
    }
    return "";
  }

  // Training that goes on meanwhile changes the tensors: the plan has room for their copies.
  Snapshot snapshot(bool going_on) {
    state_.metrics = directory_.metrics_position();
    const auto held = [going_on](const optim::NamedTensors& tensors) { return going_on ? copies(tensors) : tensors; };
    return {state_, held(saved_tensors()), held(stepper_.optimizer().state())};
  }

  // Weights that are not finite are never saved: the run goes on from the checkpoint before.
  void begin_checkpoint(bool going_on) {
    const ClockMeter stall(CLOCK_MONOTONIC, overheads_.checkpoint_stall);
    const ClockMeter meter(CLOCK_THREAD_CPUTIME_ID, overheads_.checkpoints_cpu);
    wait_for_checkpoint(/*required=*/false);
    if (const std::string name = nonfinite_weight(); !name.empty()) {
      throw Error(ErrorKind::Numeric,
                  Diagnostic{"step " + std::to_string(state_.step), 0, 0, name,
                             "is not finite after the update; no checkpoint of it is written", "lower optimizer.lr"});
    }
    last_checkpoint_ = Clock::now();
    writer_.begin(snapshot(going_on), state_.best ? state_.best->step : -1);
  }

  void finish_checkpoint(bool required) {
    const ClockMeter stall(CLOCK_MONOTONIC, overheads_.checkpoint_stall);
    wait_for_checkpoint(required);
  }

  // A checkpoint that cannot be written ends the run only when it is the last one.
  void wait_for_checkpoint(bool required) {
    try {
      writer_.wait();
    } catch (const std::exception& error) {
      if (required) throw;
      observer_.on_warning(std::string(error.what()) + "; no checkpoint was written, training goes on");
    }
  }

  [[noreturn]] void interrupt() {
    if (profiler_) publish_profile();
    const bool anything = state_.step > 0;
    if (anything) {
      begin_checkpoint(/*going_on=*/false);
      finish_checkpoint(/*required=*/true);
    }
    throw Error(ErrorKind::Interrupted,
                Diagnostic{"", 0, 0, "",
                           "stopped at step " + std::to_string(state_.step) + " of " + std::to_string(num_steps_) +
                               (anything ? ", checkpoint written" : ", nothing to save yet"),
                           "lathe train ... --resume goes on"});
  }

  void check_disk() {
    const auto needed =
        static_cast<uint64_t>(2 * (bytes_of(task_->trained_parameters()) + bytes_of(stepper_.optimizer().state())));
    std::error_code unknown;
    const auto space = std::filesystem::space(directory_.path(), unknown);
    if (unknown || space.available >= needed) return;
    throw Error(ErrorKind::Resource, Diagnostic{directory_.path().string(), 0, 0, "",
                                                "two checkpoints need " + format_bytes(needed) + ", the disk has " +
                                                    format_bytes(space.available),
                                                "free some space or choose another output.dir"});
  }

  void restore() {
    require_recipe_of_run(directory_, recipe_);
    std::vector<std::string> damaged;
    const auto checkpoint = directory_.newest_checkpoint(damaged);
    if (!checkpoint) return restore_nothing(damaged);
    for (const std::string& path : damaged) {
      observer_.on_warning(path + ": damaged, using the one before");
      RunDirectory::set_aside(path);
    }
    const Snapshot snapshot = Snapshot::read(checkpoint->path);
    require_same_inputs(snapshot.state, state_, checkpoint->path.string());
    if (snapshot.state.environment != state_.environment) {
      observer_.on_warning("bits may differ: this is " + state_.environment + ", the checkpoint is from " +
                           snapshot.state.environment);
    }
    optim::restore_tensors(snapshot.weights, saved_tensors(), (checkpoint->path / kWeightsFile).string());
    stepper_.optimizer().restore_state(snapshot.optimizer, (checkpoint->path / kOptimizerFile).string());
    const std::string environment = state_.environment;
    state_ = snapshot.state;
    state_.environment = environment;
    // Another measure, or none, has no best yet.
    if (!training_.keep_best || (state_.best && state_.best->measure != training_.keep_best->measure))
      state_.best.reset();
    if (!directory_.rewind_metrics(state_.metrics))
      observer_.on_warning((directory_.path() / "metrics.jsonl").string() + ": lines of earlier steps are missing");
  }

  // Only a run that has saved nothing yet may start again.
  void restore_nothing(const std::vector<std::string>& damaged) {
    if (!damaged.empty()) {
      throw data_error(damaged.front(), "is damaged, and no whole checkpoint is left",
                       "start a new run in another output.dir");
    }
    const auto results = task_->results();
    if (std::any_of(results.begin(), results.end(), [&](const auto& result) { return directory_.has(result.name); })) {
      throw data_error(directory_.path().string(), "has results but no checkpoint to go on from",
                       "start a new run in another output.dir");
    }
    if (directory_.metrics_position().bytes > 0)
      observer_.on_note(directory_.path().string() + ": no checkpoint was written yet, starting again");
    directory_.rewind_metrics({});
  }

  void publish() {
    if (state_.result_step() != state_.step) take_best_weights(state_.best->step);
    overheads_.checkpoints_cpu += writer_.cpu_seconds();
    Json summary = run_summary(state_, *task_, plan_);
    if (state_.step > first_step_) summary.update(measured_by_process(*task_, base_bytes_, overheads_));
    publish_results(directory_, state_, task_->results(), std::move(summary));
  }

  void take_best_weights(int64_t step) {
    const std::filesystem::path checkpoint = directory_.checkpoint_path(step);
    if (!directory_.has_whole_checkpoint(step)) {
      observer_.on_warning(checkpoint.string() +
                           ": missing or damaged; published are the last weights, not the best evaluation's");
      return;
    }
    optim::restore_tensors(Snapshot::read(checkpoint).weights, saved_tensors(), (checkpoint / kWeightsFile).string());
    observer_.on_note("published are the weights of step " + std::to_string(step) + ", the best evaluation");
  }

  const recipe::Recipe& recipe_;
  const recipe::Training& training_;
  TrainObserver& observer_;
  std::unique_ptr<Task> task_;
  cost::Plan plan_;
  data::Windows windows_;
  int64_t num_steps_;
  RunDirectory directory_;
  Stepper stepper_;
  CheckpointWriter writer_;
  RunState state_;
  std::optional<report::EventWriter> events_;
  std::optional<Profiler> profiler_;
  Overheads overheads_;
  int64_t first_step_ = 0, base_bytes_ = 0;
  Clock::time_point last_checkpoint_;
  bool best_is_new_ = false;
  bool metrics_warned_ = false;
  CollapseWatch collapse_;
};

}  // namespace

void train(const recipe::Recipe& given, bool resume, TrainObserver& observer, int64_t profile_steps) {
  MemoryMeter::install();
  if (given.training.threads > 0) at::set_num_threads(static_cast<int>(given.training.threads));
  const bool automatic = !given.training.batch_size.samples;
  recipe::Recipe recipe = resume && automatic ? with_batches_of_run(given) : given;
  const recipe::ResolvedModel resolved = recipe::resolve_model(recipe);
  const int64_t available = cost::plannable_bytes(available_memory_bytes());
  cost::Settled settled = cost::require_fit(recipe, resolved, available);
  if (automatic) {
    recipe.training.batch_size = settled.recipe.training.batch_size;
    recipe.training.gradient_accumulation_steps = settled.recipe.training.gradient_accumulation_steps;
    recipe.training.global_batch_size.reset();
  }
  Run(recipe, settled.recipe, open_classifier_task(recipe), std::move(settled.plan), resume, observer)
      .run(profile_steps);
}

}  // namespace lathe::train
