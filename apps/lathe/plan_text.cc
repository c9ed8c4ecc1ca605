#include "plan_text.h"

#include <array>
#include <cmath>
#include <cstdio>

#include "lathe/base/text.h"
#include "lathe/config/bind.h"

namespace lathe::app {
namespace {

using cost::Amount;
using cost::bytes_text;
using cost::count_text;

// Columns: a name, a value, a second value, what is to be said of them.
std::string row(const std::string& name, const std::string& value, const std::string& note = "") {
  std::string text = "  " + name;
  text.append(text.size() < 18 ? 18 - text.size() : 1, ' ');
  text += value;
  if (!note.empty()) text.append(text.size() < 32 ? 32 - text.size() : 1, ' ').append(note);
  return text + "\n";
}

// In powers of two and of ten: "277.7 MiB   291.2 MB".
std::string memory_row(const std::string& name, Amount bytes, const std::string& note = "") {
  std::string sizes = bytes_text(bytes);
  sizes.append(sizes.size() < 12 ? 12 - sizes.size() : 1, ' ').append(unit_text(bytes, "B"));
  if (!note.empty()) sizes.append(sizes.size() < 24 ? 24 - sizes.size() : 1, ' ').append(note);
  return row(name, sizes);
}

// "+25.0 %" of what was `now`.
std::string difference(Amount then, Amount now) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%+.1f %%", 100 * (then / now - 1));
  return text.data();
}

std::string flop_row(const std::string& name, Amount flops, const std::string& note = "") {
  return row(name, unit_text(flops, "FLOP"), note);
}

std::string flops_text(const cost::Plan& plan, std::optional<double> seconds) {
  std::string text = flop_row("forward", plan.flops.forward, "2 for each multiply-add of the products, nothing else");
  text += flop_row("backward", plan.flops.backward);
  if (plan.flops.recompute > 0) text += flop_row("recompute", plan.flops.recompute);
  text += flop_row("total", plan.flops.total());
  text += flop_row("  linear", plan.flops.linear - plan.flops.head);
  text += flop_row("  head", plan.flops.head);
  text += flop_row("  adapters", plan.flops.adapter);
  if (plan.flops.attention > 0)
    text += flop_row("  attention", plan.flops.attention,
                     "scores and values; the backward pass computes the scores again: 14 for a textbook's 12");
  return text + (seconds ? row("time", seconds_text(*seconds), "at the speeds that lathe doctor measured")
                         : row("time", "unknown", "run lathe doctor once: it measures this machine's speed"));
}

std::string memory_text(const cost::Plan& plan) {
  const cost::Plan::Memory& memory = plan.memory;
  std::string text = memory_row("weights", memory.weights);
  text += memory_row("  frozen", memory.weights - memory.trained_weights);
  text += memory_row("  trained", memory.trained_weights,
                     plan.master_copies ? "float32 master copies, rounded for each product" : "float32");
  text += memory_row("gradients", memory.gradients);
  text += memory_row("optimizer", memory.optimizer);
  if (memory.checkpoint > 0) text += memory_row("checkpoint", memory.checkpoint, "the copy that is written meanwhile");
  text += memory_row("activations", memory.activations, "kept from forward to backward");
  for (const auto& [part, amount] : memory.kept) text += memory_row("  " + part, amount);
  text += memory_row("logits", memory.logits);
  text += memory_row("peak", memory.peak, "in " + memory.peak_phase + "; the process's own base comes on top");
  for (const auto& [part, amount] : memory.at_peak) {
    const bool temporaries = part == "temporaries";
    if (amount > 0)
      text += memory_row("  " + part, amount, temporaries ? "gradients of activations, what is computed again" : "");
  }
  return text;
}

}  // namespace

std::string unit_text(Amount amount, const char* unit) {
  const std::string text = count_text(amount);
  return text + (text.back() >= 'A' ? "" : " ") + unit;
}

std::string seconds_text(double seconds) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g s", seconds);
  return text.data();
}

std::string plan_text(const cost::Plan& plan, std::optional<double> seconds, int64_t available_bytes) {
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
  text += flops_text(plan, seconds);
  text += "\nmemory (activation_checkpointing: " + policy + ")\n";
  text += memory_text(plan);
  const auto available = static_cast<Amount>(available_bytes);
  text += memory_row("available", available, plan.memory.peak <= available ? "fits" : "does not fit");
  if (!plan.assumes.empty()) text += "  not trained by Lathe yet; the plan assumes " + plan.assumes + "\n";
  return text;
}

std::string advice_text(const cost::Plan& plan, const Advice& advice, int64_t available_bytes) {
  const auto available = static_cast<Amount>(available_bytes);
  std::string text = "\nwhat one change would do        peak           FLOP  fits\n";
  for (const cost::Change& change : advice.changes) {
    const Amount peak = change.plan.memory.peak;
    std::array<char, 96> numbers{};
    std::snprintf(numbers.data(), numbers.size(), "  %12s %10s %10s  %-4s  ", bytes_text(peak).c_str(),
                  difference(peak, plan.memory.peak).c_str(),
                  difference(change.plan.flops.total(), plan.flops.total()).c_str(), peak <= available ? "yes" : "no");
    text += numbers.data() + cost::command_line_text(change.overrides) + "\n";
  }
  text +=
      "largest batch_size that fits: " + (advice.largest_batch ? std::to_string(*advice.largest_batch) : "none") + "\n";
  if (plan.memory.peak <= available) return text;
  if (!advice.fitting) return text + "nothing that a recipe may change makes it fit: a smaller model, or more memory\n";
  return text + "the least that makes it fit: " + cost::command_line_text(advice.fitting->overrides) + " (" +
         bytes_text(advice.fitting->plan.memory.peak) + ")\n";
}

}  // namespace lathe::app
