#include "plan_text.h"

#include <array>
#include <cstdio>

#include "lathe/config/bind.h"

namespace lathe::app {
namespace {

using cost::Amount;
using cost::bytes_text;
using cost::count_text;

// Ends `text` with blanks at `column`, two of them at least.
std::string padded(std::string text, size_t column) {
  text.append(text.size() + 2 <= column ? column - text.size() : 2, ' ');
  return text;
}

// Columns: a name, a value, what is to be said of it.
std::string row(const std::string& name, const std::string& value, const std::string& note = "") {
  const std::string text = padded("  " + name, 20) + value;
  return (note.empty() ? text : padded(text, 34) + note) + "\n";
}

// In powers of two and of ten: "277.7 MiB   291.2 MB".
std::string memory_row(const std::string& name, Amount bytes, const std::string& note = "") {
  const std::string sizes = padded(bytes_text(bytes), 14) + unit_text(bytes, "B");
  return row(name, note.empty() ? sizes : padded(sizes, 26) + note);
}

// "+25.0 %" of what was `now`.
std::string difference(Amount then, Amount now) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%+.1f %%", 100 * (then / now - 1));
  return text.data();
}

std::string flop_row(const std::string& name, Amount flops, const std::string& note = "") {
  return flops == 0 ? "" : row(name, unit_text(flops, "FLOP"), note);
}

std::string parameters_text(const cost::Plan::Parameters& parameters) {
  std::string text = row("base", count_text(parameters.base));
  for (const auto& [kind, count] : parameters.kinds) text += row("  " + kind, count_text(count));
  if (parameters.active != parameters.base)
    text += row("active", count_text(parameters.active), "of the base, for each token");
  text += row("adapter", count_text(parameters.adapter));
  return text + row("trainable", count_text(parameters.trainable));
}

std::string flops_text(const cost::Plan::Flops& flops) {
  std::string text = flop_row("forward", flops.forward, "2 for each multiply-add of the products, nothing else");
  text += flop_row("backward", flops.backward) + flop_row("recompute", flops.recompute);
  text += flop_row("total", flops.total()) + flop_row("  linear layers", flops.linear);
  text += flop_row("    head", flops.head) + flop_row("  adapters", flops.adapter);
  return text + flop_row("  attention", flops.attention, "2 products forward, 5 backward: the scores once more");
}

std::string memory_text(const cost::Plan& plan) {
  const cost::Plan::Memory& memory = plan.memory;
  std::string text = memory_row("weights", memory.weights);
  text += memory_row("  trained", memory.trained_weights,
                     plan.master_copies ? "float32 master copies, rounded for each product" : "float32");
  text += memory_row("gradients", memory.gradients) + memory_row("optimizer", memory.optimizer);
  if (memory.checkpoint > 0)
    text += memory_row("checkpoint", memory.checkpoint, "copies, written while training goes on");
  text += memory_row("activations", memory.activations, "kept from forward to backward");
  for (const auto& [part, amount] : memory.kept) text += memory_row("  " + part, amount);
  text +=
      memory_row("  textbook", memory.outputs, "every operator's output; fused, in place, or needed by no gradient");
  text += memory_row("logits", memory.logits);
  text += memory_row("peak", memory.peak, "in " + memory.peak_phase + "; the process's own base comes on top");
  for (const auto& [part, amount] : memory.at_peak) {
    const bool temporaries = part == "temporaries";
    if (amount > 0)
      text += memory_row("  " + part, amount, temporaries ? "gradients of activations, what is computed again" : "");
  }
  for (const auto& [phase, amount] : memory.phases)
    if (phase != memory.peak_phase) text += memory_row("in " + phase, amount);
  return text;
}

}  // namespace

std::string unit_text(Amount amount, const char* unit) {
  const std::string text = count_text(amount);
  return text + (text.back() >= 'A' ? "" : " ") + unit;
}

std::string seconds_text(double seconds) {
  struct Unit {
    double seconds;
    const char* name;
  };
  constexpr std::array<Unit, 5> kUnits = {
      {{365.25 * 86400, "years"}, {86400, "days"}, {3600, "h"}, {60, "min"}, {1, "s"}}};
  const Unit* unit = &kUnits.back();
  for (const Unit& larger : kUnits)
    if (seconds >= 2 * larger.seconds && unit->seconds < larger.seconds) unit = &larger;
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g %s", seconds / unit->seconds, unit->name);
  return text.data();
}

PlanReport::PlanReport(const recipe::Recipe& recipe, int64_t available)
    : resolved(recipe::resolve_model(recipe)),
      available_bytes(available),
      settled(cost::settle(recipe, resolved, available_bytes)),
      speed(cost::measured_speed()),
      changes(cost::possible_changes(recipe, resolved, settled, available_bytes)),
      largest_batch(cost::largest_batch(recipe, resolved, available_bytes)) {
  if (!settled.fits()) fitting = cost::fitting_change(recipe, resolved, available_bytes);
}

std::string PlanReport::text() const {
  const bool images = arch::sees_images(resolved.config.arch);
  const std::string policy = config::Codec<recipe::Checkpointing>::write(plan().checkpointing);
  std::string text = "parameters\n" + parameters_text(plan().parameters);
  text += "\none optimizer step: " + std::to_string(plan().gradient_accumulation_steps) + " x " +
          std::to_string(plan().batch_size) + " samples of " + std::to_string(plan().max_length) +
          (images ? " patches\n" : " tokens\n");
  text += flops_text(plan().flops);
  text += seconds() ? row("time", seconds_text(*seconds()), "at the speeds that lathe doctor measured")
                    : row("time", "unknown", "run lathe doctor once: it measures this machine's speed");
  text += "\nmemory (activation_checkpointing: " + policy + ")\n" + memory_text(plan());
  text += memory_row(settled.budgeted ? "budget" : "available", static_cast<Amount>(settled.limit_bytes),
                     settled.fits() ? "fits" : "does not fit");
  if (!plan().assumes.empty()) text += "\nthe plan assumes\n" + plan().assumes;
  return text;
}

std::string PlanReport::advice_text() const {
  std::string text =
      "\nwhat one change would do\n          peak                    change       FLOP       time  fits\n";
  for (const cost::Change& change : changes) {
    const Amount peak = change.plan.memory.peak;
    const std::optional<double> then = cost::estimate_seconds(change.plan, speed);
    std::array<char, 128> numbers{};
    std::snprintf(numbers.data(), numbers.size(), "%14s %12s %11s %10s %10s  %-4s  ", bytes_text(peak).c_str(),
                  unit_text(peak, "B").c_str(), difference(peak, plan().memory.peak).c_str(),
                  difference(change.plan.flops.total(), plan().flops.total()).c_str(),
                  then ? difference(*then, *seconds()).c_str() : "unknown", change.fits ? "yes" : "no");
    text += numbers.data() + cost::command_line_text(change.overrides) + "\n";
  }
  if (settled.budgeted)
    text += "a policy of its own stands for the budget: it fits into the memory that is available\n";
  text += "largest batch_size that fits: " + (largest_batch ? std::to_string(*largest_batch) : "none") + "\n";
  if (settled.fits()) return text;
  const std::string what = settled.budgeted ? "keep within the budget" : "fit";
  if (!fitting)
    return text + "no change of the recipe makes it " + what + ": a smaller model, or " +
           (settled.budgeted ? "a larger budget\n" : "more memory\n");
  return text + "a way to make it " + what +
         ", no part of which could be spared: " + cost::command_line_text(fitting->overrides) + " (" +
         bytes_text(fitting->plan.memory.peak) + ", " + unit_text(fitting->plan.memory.peak, "B") + ")\n";
}

Json PlanReport::json() const {
  Json json = cost::to_json(plan(), seconds());
  json["available_bytes"] = available_bytes;
  json["budget_bytes"] = settled.budgeted ? Json(settled.limit_bytes) : Json(nullptr);
  json["fits"] = settled.fits();
  json["largest_batch_size"] = largest_batch ? Json(*largest_batch) : Json(nullptr);
  json["changes"] = cost::to_json(changes);
  for (size_t i = 0; i < changes.size(); ++i) {
    const std::optional<double> then = cost::estimate_seconds(changes[i].plan, speed);
    json["changes"][i]["seconds_per_step"] = then ? Json(*then) : Json(nullptr);
  }
  json["least_change_that_fits"] = fitting ? cost::to_json({*fitting})[0] : Json(nullptr);
  return json;
}

}  // namespace lathe::app
