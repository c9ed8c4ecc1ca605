#include "plan_text.h"

#include <array>
#include <cmath>
#include <cstdio>

#include "lathe/base/text.h"
#include "lathe/config/bind.h"

namespace lathe::app {
namespace {

std::string with_unit(double value) {
  constexpr std::array<const char*, 6> kUnits = {"", " k", " M", " G", " T", " P"};
  size_t unit = 0;
  for (; std::abs(value) >= 1000 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.4g%s", value, kUnits[unit]);
  return text.data();
}

std::string row(const std::string& name, const std::string& value, const std::string& note = "") {
  std::string text = "  " + name;
  text.append(text.size() < 18 ? 18 - text.size() : 1, ' ');
  text += value;
  if (!note.empty()) text.append(text.size() < 32 ? 32 - text.size() : 1, ' ').append(note);
  return text + "\n";
}

std::string bytes(double amount) { return format_bytes(static_cast<uint64_t>(std::min(amount, 9e18))); }

}  // namespace

std::string plan_text(const cost::Plan& plan, int64_t available_bytes) {
  const cost::Plan::Memory& memory = plan.memory;
  const std::string policy = config::Codec<recipe::Checkpointing>::write(plan.checkpointing);
  std::string text = "parameters\n";
  text += row("base", with_unit(plan.parameters.base));
  text += row("adapter", with_unit(plan.parameters.adapter));
  text += row("trainable", with_unit(plan.parameters.trainable));
  text += "\none optimizer step: " + std::to_string(plan.gradient_accumulation_steps) + " x " +
          std::to_string(plan.batch_size) + " samples of " + std::to_string(plan.max_length) + " tokens\n";
  text += row("forward", with_unit(plan.flops.forward) + "FLOP", "2 for each multiply-add of the products");
  text += row("backward", with_unit(plan.flops.backward) + "FLOP");
  if (plan.flops.recompute > 0) text += row("recompute", with_unit(plan.flops.recompute) + "FLOP");
  text += row("total", with_unit(plan.flops.total()) + "FLOP",
              "linear " + with_unit(plan.flops.linear) + ", adapters " + with_unit(plan.flops.adapter) +
                  ", attention " + with_unit(plan.flops.attention));
  text += plan.seconds
              ? row("time", with_unit(*plan.seconds) + "s", "at the speed of products that lathe doctor measured")
              : row("time", "unknown", "lathe doctor measures this machine's speed");
  text += "\nmemory (activation_checkpointing: " + policy + ")\n";
  text += row("weights", bytes(memory.weights));
  text += row("gradients", bytes(memory.gradients));
  text += row("optimizer", bytes(memory.optimizer));
  if (memory.checkpoint > 0) text += row("checkpoint", bytes(memory.checkpoint), "the copy that is written meanwhile");
  text += row("activations", bytes(memory.activations), "kept from forward to backward");
  text += row("logits", bytes(memory.logits));
  text += row("peak", bytes(memory.peak), "in " + memory.peak_phase + "; the process's own base comes on top");
  const bool fits = memory.peak <= static_cast<double>(available_bytes);
  text += row("available", bytes(static_cast<double>(available_bytes)), fits ? "fits" : "does not fit");
  return text;
}

}  // namespace lathe::app
