#include "lathe/train/trainer.h"

#include <ATen/Parallel.h>
#include <ATen/ops/tensor.h>
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <set>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/random.h"
#include "lathe/base/text.h"
#include "lathe/io/tensors.h"
#include "lathe/nn/modules.h"
#include "lathe/train/build_optimizer.h"
#include "lathe/train/signals.h"

namespace lathe::train {
namespace {

constexpr const char* kWeightsFile = "trainable.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kStateFile = "state.json";

int64_t peak_rss_bytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Json to_json(const StepMetrics& metrics) {
  return {{"step", metrics.step},
          {"epoch", metrics.epoch},
          {"loss", metrics.loss},
          {"lr", metrics.lr},
          {"grad_norm", metrics.grad_norm},
          {"tokens", metrics.tokens},
          {"seconds", metrics.seconds},
          {"tokens_per_second", static_cast<double>(metrics.tokens) / metrics.seconds},
          {"peak_rss_bytes", metrics.peak_rss_bytes}};
}

// The keys of a recipe that a resumed run may change.
bool may_change_on_resume(const std::string& key) {
  return key == "training.max_steps" || key == "training.epochs" || key.starts_with("output.") ||
         key.starts_with("training.keep_");
}

std::string hex(uint64_t value) {
  std::string text(16, '0');
  for (size_t i = 0; i < 16; ++i) text[15 - i] = "0123456789abcdef"[(value >> (4 * i)) & 15];
  return text;
}

}  // namespace

ClassifierStepper::ClassifierStepper(Classifier& classifier, const data::TextClassificationData& data,
                                     const recipe::Recipe& recipe, int64_t num_steps)
    : classifier_(classifier),
      data_(data),
      seed_(static_cast<uint64_t>(recipe.training.seed)),
      lr_(recipe.optimizer.lr),
      clip_grad_norm_(recipe.optimizer.clip_grad_norm),
      label_smoothing_(recipe.data.label_smoothing),
      schedule_(build_schedule(recipe.optimizer, num_steps)),
      optimizer_(build_optimizer(recipe, adapters::trainable_parameters(*classifier.model))) {}

double ClassifierStepper::add_micro_batch(const std::vector<int64_t>& samples, uint64_t key, double scale,
                                          int64_t& tokens) {
  std::vector<text::Encoding> encodings;
  std::vector<int64_t> labels;
  for (const int64_t index : samples) {
    encodings.push_back(data_.encode(data_.train, index));
    labels.push_back(data_.train.sample(index).label);
    tokens += static_cast<int64_t>(encodings.back().ids.size());
  }
  const nn::DropoutStream adapter_dropouts(make_key(key, name_key("adapters")));
  const Tensor logits = classifier_.model->forward(make_batch(encodings), {.training = true, .key = key});
  const Tensor loss = nn::cross_entropy_sum(logits, at::tensor(labels, at::kLong), label_smoothing_) * scale;
  loss.backward();
  return loss.item<double>();
}

bool ClassifierStepper::run(int64_t step, const std::vector<std::vector<int64_t>>& window, StepMetrics& metrics) {
  const auto start = std::chrono::steady_clock::now();
  int64_t items = 0;
  for (const auto& samples : window) items += static_cast<int64_t>(samples.size());
  metrics.step = step + 1;
  metrics.lr = lr_ * schedule_.factor(step);
  for (size_t i = 0; i < window.size(); ++i) {
    if (stop_requested()) {
      optimizer_->zero_grad();
      return false;
    }
    metrics.loss += add_micro_batch(window[i], make_key(seed_, name_key("dropout"), step, i),
                                    1 / static_cast<double>(items), metrics.tokens);
  }
  const optim::GradientNorm norm = optim::clip_gradients(optimizer_->trained(), clip_grad_norm_);
  if (!std::isfinite(metrics.loss) || !norm.finite) {
    optimizer_->zero_grad();
    const std::string what = std::isfinite(metrics.loss) ? "the gradient" : "the loss";
    throw Error(ErrorKind::Numeric, Diagnostic{"step " + std::to_string(step + 1), 0, 0, "",
                                               what + " is not finite; the weights are those of the step before",
                                               "lower optimizer.lr, or look at the data of this step"});
  }
  metrics.grad_norm = norm.norm;
  optimizer_->step(metrics.lr);
  optimizer_->zero_grad();
  metrics.seconds = seconds_since(start);
  metrics.peak_rss_bytes = peak_rss_bytes();
  return true;
}

namespace {

// The loop over the steps of one run, with its directory.
class ClassifierRun {
 public:
  ClassifierRun(const recipe::Recipe& recipe, bool resume, TrainObserver& observer)
      : recipe_(recipe),
        observer_(observer),
        resolved_(recipe::resolve_model(recipe)),
        data_(data::open_text_classification(recipe, resolved_)),
        windows_(data_.train.size(), *recipe.training.batch_size.samples, recipe.training.gradient_accumulation_steps,
                 recipe.data.shuffle, static_cast<uint64_t>(recipe.training.seed)),
        num_steps_(recipe.training.max_steps.value_or(recipe.training.epochs.value_or(1) * windows_.steps_per_epoch())),
        directory_(recipe.output.dir.resolved, resume),
        classifier_(build_classifier(recipe, resolved_, data_.train.label_names())),
        stepper_(classifier_, data_, recipe, num_steps_) {
    classifier_.model->train();
    if (resume) restore();
    directory_.write_recipe(recipe::to_yaml(recipe));
  }

  void run() {
    observer_.on_start(step_, num_steps_);
    if (step_ >= num_steps_ && has_results())
      return observer_.on_warning(directory_.path().string() + ": this run is finished");
    if (evaluation_pending_) evaluate_now();  // the run was stopped in the middle of it
    while (step_ < num_steps_) {
      StepMetrics metrics;
      if (!stepper_.run(step_, windows_.window(step_), metrics)) interrupt();
      metrics.epoch = windows_.epoch_after(step_ + 1);
      ++step_;
      directory_.append_metrics(to_json(metrics));
      observer_.on_step(metrics);
      if (evaluation_is_due()) evaluate_now();
      const int64_t every = recipe_.training.checkpoint_every_steps;
      if (step_ == num_steps_ || (every > 0 && step_ % every == 0)) save_checkpoint();
    }
    publish_results();
  }

 private:
  bool has_results() const { return directory_.has(classifier_.adapter ? "adapter" : "model"); }

  bool evaluation_is_due() const {
    if (!data_.eval) return false;
    const int64_t every =
        recipe_.training.eval_every_steps > 0 ? recipe_.training.eval_every_steps : windows_.steps_per_epoch();
    return step_ % every == 0 || step_ == num_steps_;
  }

  void evaluate_now() {
    evaluation_pending_ = true;
    classifier_.model->eval();
    Evaluation result;
    try {
      result = evaluate(classifier_, data_, *data_.eval, *recipe_.training.batch_size.samples, stop_requested);
    } catch (const Error& error) {
      classifier_.model->train();
      if (error.kind() == ErrorKind::Interrupted) interrupt();
      throw;
    }
    classifier_.model->train();
    directory_.append_metrics({{"step", step_},
                               {"epoch", windows_.epoch_after(step_)},
                               {"eval_loss", result.eval_loss},
                               {"accuracy", result.accuracy},
                               {"f1", result.f1}});
    evaluation_pending_ = false;
    observer_.on_evaluation(step_, result);
  }

  void save_checkpoint() {
    directory_.publish_checkpoint(step_, recipe_.training.keep_checkpoints, [&](const std::filesystem::path& path) {
      io::write_safetensors((path / kWeightsFile).string(), adapters::trainable_parameters(*classifier_.model));
      io::write_safetensors((path / kOptimizerFile).string(), stepper_.optimizer().state());
      const Json state = {{"step", step_},
                          {"metrics_bytes", directory_.metrics_bytes()},
                          {"evaluation_pending", evaluation_pending_},
                          {"data", hex(data_.train.fingerprint())},
                          {"threads", at::get_num_threads()}};
      write_file_atomically(path / kStateFile, state.dump(2) + "\n");
    });
  }

  [[noreturn]] void interrupt() {
    if (step_ > 0) save_checkpoint();
    throw Error(ErrorKind::Interrupted,
                Diagnostic{"", 0, 0, "",
                           "stopped at step " + std::to_string(step_) + " of " + std::to_string(num_steps_) +
                               (step_ > 0 ? ", checkpoint written" : ", nothing to save yet"),
                           "lathe train ... --resume goes on"});
  }

  void restore() {
    check_recipe_unchanged();
    std::vector<std::string> damaged;
    const auto checkpoint = directory_.newest_checkpoint(damaged);
    for (const std::string& path : damaged) observer_.on_warning(path + ": damaged, using the one before");
    if (!checkpoint) {
      directory_.truncate_metrics(0);
      return;
    }
    const std::string file = (checkpoint->path / kStateFile).string();
    const Json json = read_json_file(file, 1 << 20);
    const JsonObject state(json, file);
    if (state.string("data") != hex(data_.train.fingerprint()))
      throw data_error(file, "the training data has changed since this checkpoint", "start a new run");
    if (state.integer("threads", 1, INT32_MAX) != at::get_num_threads())
      observer_.on_warning("another number of threads than before: bits may differ");
    const std::string weights = (checkpoint->path / kWeightsFile).string(),
                      moments = (checkpoint->path / kOptimizerFile).string();
    restore_parameters(io::TensorFile(weights).tensors(), weights);
    stepper_.optimizer().restore_state(io::TensorFile(moments).tensors(), moments);
    step_ = state.integer("step", 0, INT64_MAX);
    evaluation_pending_ = state.boolean("evaluation_pending");
    directory_.truncate_metrics(static_cast<uint64_t>(state.integer("metrics_bytes", 0, INT64_MAX)));
  }

  void restore_parameters(const io::NamedTensors& tensors, const std::string& file) {
    const at::NoGradGuard no_grad;
    const auto parameters = adapters::trainable_parameters(*classifier_.model);
    if (tensors.size() != parameters.size())
      throw data_error(
          file, Diagnostic::expected(std::to_string(parameters.size()) + " tensors", std::to_string(tensors.size())));
    const std::map<std::string, Tensor> by_name(tensors.begin(), tensors.end());
    for (const auto& [name, parameter] : parameters) {
      const auto found = by_name.find(name);
      if (found == by_name.end() || found->second.sizes() != parameter.sizes())
        throw data_error_in(file, name, "is missing or has another shape");
      Tensor(parameter).copy_(found->second);
    }
  }

  void check_recipe_unchanged() {
    const auto text = directory_.recipe_text();
    if (!text) return;
    const std::string file = (directory_.path() / "recipe.yaml").string();
    std::vector<Diagnostic> mistakes;
    for (const std::string& key : recipe::changed_keys(recipe::parse(*text, file, ""), recipe_)) {
      if (may_change_on_resume(key)) continue;
      Diagnostic diagnostic = recipe_.at(key);
      diagnostic.problem = "differs from the run that is being resumed";
      diagnostic.hint = "see " + file;
      mistakes.push_back(std::move(diagnostic));
    }
    if (!mistakes.empty()) throw Error(ErrorKind::Config, std::move(mistakes));
  }

  void publish_results() {
    if (classifier_.adapter)
      directory_.publish("adapter", [&](const auto& path) { save_adapter(classifier_, path.string()); });
    if (!classifier_.adapter || recipe_.output.merged)
      directory_.publish("model", [&](const auto& path) { save_model(classifier_, path.string()); });
  }

  const recipe::Recipe& recipe_;
  TrainObserver& observer_;
  recipe::ResolvedModel resolved_;
  data::TextClassificationData data_;
  data::Windows windows_;
  int64_t num_steps_;
  RunDirectory directory_;
  Classifier classifier_;
  ClassifierStepper stepper_;
  int64_t step_ = 0;
  bool evaluation_pending_ = false;
};

}  // namespace

void train_classifier(const recipe::Recipe& recipe, bool resume, TrainObserver& observer) {
  if (recipe.training.threads > 0) at::set_num_threads(static_cast<int>(recipe.training.threads));
  ClassifierRun(recipe, resume, observer).run();
}

}  // namespace lathe::train
