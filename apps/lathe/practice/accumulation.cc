#include "practice/accumulation.h"

namespace lathe::app::practice {

std::vector<double> ExamLoop::run(Filling filling) const {
  std::vector<double> losses;
  for (size_t batch_idx = 0; batch_idx < loader.size(); ++batch_idx) {
    const Tensor loss = criterion(model(loader[batch_idx].inputs), loader[batch_idx].targets);
    losses.push_back(loss.item<double>());
    if (filling == Filling::ZeroFirst) optimizer.zero_grad();
    (filling == Filling::Undivided ? loss : loss / static_cast<double>(accumulation_steps)).backward();
    const bool ends_window = (batch_idx + 1) % static_cast<size_t>(accumulation_steps) == 0;
    if (!ends_window && filling != Filling::StepAlways) continue;
    before_step();
    optimizer.step(lr);
    if (filling != Filling::NeverZero) optimizer.zero_grad();
  }
  return losses;
}

}  // namespace lathe::app::practice
