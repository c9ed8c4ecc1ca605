#include "practice/accumulation.h"

namespace lathe::app::practice {
namespace {

// The optimizer under the names of the exam's loop.
struct LoopOptimizer {
  const ExamLoop& loop;

  void step() const {
    loop.before_step();
    loop.optimizer.step(loop.lr);
  }
  void zero_grad() const { loop.optimizer.zero_grad(); }
};

struct FilledBlanks {
  const char* code;
  void (*run)(const Tensor& loss, int64_t batch_idx, int64_t accumulation_steps, const LoopOptimizer& optimizer);
};

// Statements that are both compiled and shown.
#define LATHE_FILLED_BLANKS(...)                                                                                  \
  {                                                                                                               \
#__VA_ARGS__, [](const Tensor& loss, [[maybe_unused]] int64_t batch_idx,                                      \
                     [[maybe_unused]] int64_t accumulation_steps, const LoopOptimizer& optimizer) { __VA_ARGS__ } \
  }

FilledBlanks filled_blanks(Filling filling) {
  switch (filling) {
    case Filling::Undivided:
      return LATHE_FILLED_BLANKS(loss.backward(); if ((batch_idx + 1) % accumulation_steps == 0) {
        optimizer.step();
        optimizer.zero_grad();
      });
    case Filling::ZeroFirst:
      return LATHE_FILLED_BLANKS(optimizer.zero_grad(); (loss / accumulation_steps).backward();
                                 if ((batch_idx + 1) % accumulation_steps == 0) { optimizer.step(); });
    case Filling::StepAlways:
      return LATHE_FILLED_BLANKS((loss / accumulation_steps).backward(); optimizer.step(); optimizer.zero_grad(););
    case Filling::NeverZero:
      return LATHE_FILLED_BLANKS((loss / accumulation_steps).backward();
                                 if ((batch_idx + 1) % accumulation_steps == 0) { optimizer.step(); });
    case Filling::Mended:
      break;
  }
  return LATHE_FILLED_BLANKS((loss / accumulation_steps).backward(); if ((batch_idx + 1) % accumulation_steps == 0) {
    optimizer.step();
    optimizer.zero_grad();
  });
}

}  // namespace

std::string filling_code(Filling filling) {
  std::string lines, indent;
  for (const char* at = filled_blanks(filling).code; *at != '\0'; ++at) {
    const bool begins = lines.empty() || lines.back() == '\n';
    if (begins && *at == ' ') continue;
    if (*at == '}') indent.clear();
    lines += (begins ? indent : "") + *at;
    if (*at == '{') indent = "    ";
    if (*at == '{' || *at == '}' || *at == ';') lines += '\n';
  }
  return lines;
}

std::vector<double> ExamLoop::run(Filling filling) const {
  const FilledBlanks blanks = filled_blanks(filling);
  const LoopOptimizer stepping{*this};
  std::vector<double> losses;
  for (size_t batch_idx = 0; batch_idx < loader.size(); ++batch_idx) {
    const Tensor loss = criterion(model(loader[batch_idx].inputs), loader[batch_idx].targets);
    losses.push_back(loss.item<double>());
    blanks.run(loss, static_cast<int64_t>(batch_idx), accumulation_steps, stepping);
  }
  return losses;
}

}  // namespace lathe::app::practice
