#include "plan_text.h"

#include <array>
#include <cmath>
#include <cstdio>

#include "lathe/base/text.h"
#include "lathe/config/bind.h"

namespace lathe::app {
namespace {

using cost::bytes_text;
using cost::count_text;

std::string row(const std::string& name, const std::string& value, const std::string& note = "") {
  std::string text = "  " + name;
  text.append(text.size() < 18 ? 18 - text.size() : 1, ' ');
  text += value;
  if (!note.empty()) text.append(text.size() < 32 ? 32 - text.size() : 1, ' ').append(note);
  return text + "\n";
}

// "+25.0 %" of what was `now`.
std::string difference(cost::Amount then, cost::Amount now) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%+.1f %%", 100 * (then / now - 1));
  return text.data();
}

std::string flop_text(cost::Amount flops) {
  const std::string text = count_text(flops);
  return text + (text.back() >= 'A' ? "FLOP" : " FLOP");
}

std::string seconds_text(double seconds) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g s", seconds);
  return text.data();
}

}  // namespace

std::string plan_text(const cost::Plan& plan, std::optional<double> seconds, int64_t available_bytes) {
  const cost::Plan::Memory& memory = plan.memory;
  const std::string policy = config::Codec<recipe::Checkpointing>::write(plan.checkpointing);
  std::string text = "parameters\n";
  text += row("base", count_text(plan.parameters.base));
  for (const auto& [kind, count] : plan.parameters.kinds) text += row("  " + kind, count_text(count));
  if (plan.parameters.active != plan.parameters.base)
    text += row("active", count_text(plan.parameters.active), "of the base, for each token");
  text += row("adapter", count_text(plan.parameters.adapter));
  text += row("trainable", count_text(plan.parameters.trainable));
  text += "\none optimizer step: " + std::to_string(plan.gradient_accumulation_steps) + " x " +
          std::to_string(plan.batch_size) + " samples of " + std::to_string(plan.max_length) + " tokens\n";
  text += row("forward", flop_text(plan.flops.forward), "2 for each multiply-add of the products");
  text += row("backward", flop_text(plan.flops.backward));
  if (plan.flops.recompute > 0) text += row("recompute", flop_text(plan.flops.recompute));
  text += row("total", flop_text(plan.flops.total()),
              "linear " + count_text(plan.flops.linear) + ", adapters " + count_text(plan.flops.adapter) +
                  ", attention " + count_text(plan.flops.attention));
  text += seconds ? row("time", seconds_text(*seconds), "at the speeds that lathe doctor measured")
                  : row("time", "unknown", "run lathe doctor once: it measures this machine's speed");
  text += "\nmemory (activation_checkpointing: " + policy + ")\n";
  text += row("weights", bytes_text(memory.weights));
  text += row("gradients", bytes_text(memory.gradients));
  text += row("optimizer", bytes_text(memory.optimizer));
  if (memory.checkpoint > 0)
    text += row("checkpoint", bytes_text(memory.checkpoint), "the copy that is written meanwhile");
  text += row("activations", bytes_text(memory.activations), "kept from forward to backward");
  for (const auto& [part, amount] : memory.kept) text += row("  " + part, bytes_text(amount));
  text += row("logits", bytes_text(memory.logits));
  text += row("peak", bytes_text(memory.peak), "in " + memory.peak_phase + "; the process's own base comes on top");
  for (const auto& [part, amount] : memory.at_peak)
    if (amount > 0) text += row("  " + part, bytes_text(amount), part == "activations" ? "with temporaries" : "");
  const bool fits = memory.peak <= static_cast<double>(available_bytes);
  text += row("available", bytes_text(static_cast<double>(available_bytes)), fits ? "fits" : "does not fit");
  if (!plan.assumes.empty()) text += "  not trained by Lathe yet; the plan assumes " + plan.assumes + "\n";
  return text;
}

std::string advice_text(const cost::Plan& plan, const std::vector<cost::Change>& changes,
                        std::optional<int64_t> largest_batch) {
  std::string text = "\nwhat one change would do        peak           FLOP\n";
  for (const cost::Change& change : changes) {
    std::array<char, 96> numbers{};
    std::snprintf(numbers.data(), numbers.size(), "  %12s %10s %10s  ", bytes_text(change.plan.memory.peak).c_str(),
                  difference(change.plan.memory.peak, plan.memory.peak).c_str(),
                  difference(change.plan.flops.total(), plan.flops.total()).c_str());
    text += numbers.data() + change.overrides + "\n";
  }
  text += "largest batch_size that fits: " + (largest_batch ? std::to_string(*largest_batch) : "none") + "\n";
  return text;
}

}  // namespace lathe::app
