#include "lathe/train/trainer.h"

#include <array>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <utility>

#include "console.h"
#include "lathe/base/text.h"
#include "lathe/recipe/recipe.h"
#include "torch_verbs.h"

namespace lathe::app {
namespace {

std::string format(const char* pattern, double value) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), pattern, value);
  return text.data();
}

// A bar that redraws itself on a terminal, plain lines elsewhere.
class Progress : public train::TrainObserver {
 public:
  explicit Progress(int64_t log_every_steps) : log_every_steps_(log_every_steps), terminal_(stderr_is_terminal()) {}

  void on_start(int64_t first_step, int64_t num_steps) override {
    first_step_ = first_step;
    num_steps_ = num_steps;
    start_ = std::chrono::steady_clock::now();
    if (first_step > 0 && first_step < num_steps) print_note("resuming after step " + std::to_string(first_step));
  }
  void on_step(const train::StepMetrics& metrics) override {
    if (metrics.step % log_every_steps_ != 0 && metrics.step != num_steps_) return;
    const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    const double left =
        elapsed / static_cast<double>(metrics.step - first_step_) * static_cast<double>(num_steps_ - metrics.step);
    const std::string text = "step " + std::to_string(metrics.step) + "/" + std::to_string(num_steps_) + "  loss " +
                             format("%.4f", metrics.loss) + "  lr " + format("%.2e", metrics.lr) + "  " +
                             format("%.0f", static_cast<double>(metrics.tokens) / metrics.seconds) + " tokens/s  " +
                             format_bytes(static_cast<uint64_t>(metrics.peak_rss_bytes)) + "  " + format("%.0f", left) +
                             " s left";
    if (terminal_) {
      // A line that wraps could not be redrawn; the last column stays free, where some terminals wrap already.
      const size_t width = stderr_width();
      const std::string shown = bar(metrics.step) + " " + text;
      std::cerr << "\r\x1B[K" << (width == 0 ? shown : shown.substr(0, width - 1)) << std::flush;
      bar_is_open_ = true;
    } else {
      print_note(text);
    }
  }
  void on_evaluation(int64_t step, const train::Evaluation& evaluation) override {
    end_bar();
    print_note("step " + std::to_string(step) + "  eval_loss " + format("%.4f", evaluation.eval_loss) + "  accuracy " +
               format("%.4f", evaluation.accuracy) + "  f1 " + format("%.4f", evaluation.f1) +
               (evaluation.top5_accuracy ? "  top5_accuracy " + format("%.4f", *evaluation.top5_accuracy) : ""));
  }
  void on_note(const std::string& text) override {
    end_bar();
    print_note(text);
  }
  void on_warning(const std::string& text) override {
    end_bar();
    print_warning(text);
  }
  void end_bar() {
    if (std::exchange(bar_is_open_, false)) std::cerr << "\n";
  }

 private:
  std::string bar(int64_t step) const {
    constexpr int64_t kWidth = 20;
    const auto filled = static_cast<size_t>(kWidth * step / num_steps_);
    return "[" + std::string(filled, '#') + std::string(kWidth - filled, '.') + "]";
  }

  int64_t log_every_steps_, first_step_ = 0, num_steps_ = 0;
  bool terminal_, bar_is_open_ = false;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace

int run_train(const CommandLine& line) {
  const recipe::Recipe recipe = recipe::load(line.recipe, line.overrides);
  Progress progress(recipe.output.log_every_steps);
  try {
    train::train(recipe, line.resume, progress, line.profile_steps);
  } catch (...) {
    progress.end_bar();
    throw;
  }
  progress.end_bar();
  const std::string published = recipe.adapter.type == recipe::AdapterType::None ? "/model" : "/adapter";
  print_result(recipe.output.dir.resolved + published + "\n");
  return 0;
}

}  // namespace lathe::app
