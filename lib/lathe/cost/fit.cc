#include "lathe/cost/fit.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "lathe/cost/advice.h"

namespace lathe::cost {
namespace {

Error too_large(Diagnostic place, const std::string& what, const Plan& plan, int64_t available, std::string hint) {
  place.problem = what + " needs " + bytes_text(plan.memory.peak) + " (weights " + bytes_text(plan.memory.weights) +
                  ", activations " + bytes_text(plan.memory.activations) + "; the peak is in " +
                  plan.memory.peak_phase + "), " + bytes_text(static_cast<Amount>(available)) + " are there";
  place.hint = std::move(hint);
  return {ErrorKind::Resource, std::move(place)};
}

std::string what_would_fit(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, int64_t available) {
  const std::optional<Change> change = fitting_change(recipe, resolved, static_cast<Amount>(available));
  if (!change) return "a machine with more memory, or a smaller model";
  return command_line_text(change->overrides) + " needs " + bytes_text(change->plan.memory.peak);
}

bool fits(const Plan& plan, int64_t available) { return plan.memory.peak <= static_cast<Amount>(available); }

recipe::Recipe with(const recipe::Recipe& recipe, int64_t batch_size, int64_t accumulation,
                    const recipe::Checkpointing& policy) {
  recipe::Recipe changed = with_batches(recipe, batch_size, accumulation);
  changed.training.activation_checkpointing = policy;
  return changed;
}

// The policy that recomputes most: all layers but the last.
recipe::Checkpointing recompute_layers(int64_t count) {
  using Kind = recipe::Checkpointing::Kind;
  return count < 1 ? recipe::Checkpointing{Kind::Elementwise} : recipe::Checkpointing{Kind::Layers, count};
}

// The budget's policy for this batch size that recomputes least, or none: nothing, elementwise, or the smallest number
// of layers. The more layers, the lower the peak, so that halving finds it.
std::optional<recipe::Checkpointing> policy_within(recipe::Recipe recipe, const recipe::ResolvedModel& resolved,
                                                   int64_t budget) {
  recipe::Checkpointing& policy = recipe.training.activation_checkpointing;
  const auto holds = [&](const recipe::Checkpointing& candidate) {
    policy = candidate;
    return fits(make_plan(recipe, resolved), budget);
  };
  for (const recipe::Checkpointing& simple :
       {recipe::Checkpointing{}, recipe::Checkpointing{recipe::Checkpointing::Kind::Elementwise}})
    if (holds(simple)) return policy;
  int64_t exceeds = 0, within = arch::num_layers(resolved.config.arch) - 1;
  if (within < 1 || !holds(recompute_layers(within))) return std::nullopt;
  while (within - exceeds > 1) {
    const int64_t middle = exceeds + (within - exceeds) / 2;
    (holds(recompute_layers(middle)) ? within : exceeds) = middle;
  }
  return recompute_layers(within);
}

}  // namespace

recipe::Recipe settle(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, int64_t available_bytes) {
  const recipe::Training& training = recipe.training;
  const bool budgeted = training.activation_checkpointing.kind == recipe::Checkpointing::Kind::Budget;
  const int64_t limit =
      budgeted ? std::min(available_bytes, training.activation_checkpointing.budget_bytes) : available_bytes;
  if (training.batch_size.samples && !budgeted) return recipe;
  const std::vector<int64_t> sizes =
      training.batch_size.samples ? std::vector{*training.batch_size.samples} : divisors(*training.global_batch_size);
  const auto sized = [&](int64_t size, const recipe::Checkpointing& policy) {
    const int64_t accumulation =
        training.batch_size.samples ? training.gradient_accumulation_steps : *training.global_batch_size / size;
    return with(recipe, size, accumulation, policy);
  };
  const auto choice = [&](int64_t size) -> std::optional<recipe::Recipe> {
    if (budgeted) {
      const auto policy = policy_within(sized(size, {}), resolved, limit);
      return policy ? std::optional(sized(size, *policy)) : std::nullopt;
    }
    recipe::Recipe candidate = sized(size, training.activation_checkpointing);
    return fits(make_plan(candidate, resolved), limit) ? std::optional(std::move(candidate)) : std::nullopt;
  };
  // A smaller batch needs less: the sizes that do not fit stand before those that do.
  const auto largest = std::partition_point(sizes.begin(), sizes.end(), [&](int64_t size) { return !choice(size); });
  if (largest != sizes.end()) return *choice(*largest);
  const recipe::Recipe smallest =
      sized(sizes.back(), budgeted ? recompute_layers(arch::num_layers(resolved.config.arch) - 1)
                                   : training.activation_checkpointing);
  const std::string key = budgeted ? "training.activation_checkpointing" : "training.batch_size";
  throw too_large(recipe.at(key), "the least that it allows", make_plan(smallest, resolved), limit,
                  what_would_fit(smallest, resolved, limit));
}

Plan require_fit(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, int64_t available_bytes) {
  Plan plan = make_plan(recipe, resolved);
  if (fits(plan, available_bytes)) return plan;
  throw too_large(recipe.at("training.batch_size"), "the run", plan, available_bytes,
                  what_would_fit(recipe, resolved, available_bytes));
}

std::optional<int64_t> largest_batch(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                                     Amount available_bytes) {
  const auto peak = [&](int64_t size) {
    recipe::Recipe candidate = recipe;
    candidate.training.batch_size.samples = size;
    return make_plan(candidate, resolved).memory.peak;
  };
  const Amount least = peak(1);
  if (least > available_bytes) return std::nullopt;
  // The peak is nearly a line in the size: aim along it; where it is not, halve what is left.
  constexpr int kAimed = 8;
  int64_t fits = 1, exceeds = static_cast<int64_t>(recipe::kMaxCount) + 1, guess = 2;
  for (int step = 0; exceeds - fits > 1; ++step) {
    const Amount bytes = peak(guess);
    (bytes <= available_bytes ? fits : exceeds) = guess;
    const Amount slope = (bytes - least) / static_cast<Amount>(guess - 1);
    const Amount aim = slope > 0 ? 1 + std::floor((available_bytes - least) / slope) : recipe::kMaxCount;
    guess =
        step < kAimed && aim < static_cast<Amount>(exceeds) ? static_cast<int64_t>(aim) : fits + (exceeds - fits) / 2;
    guess = std::clamp(guess, fits + 1, std::max(fits + 1, exceeds - 1));
  }
  return fits;
}

}  // namespace lathe::cost
