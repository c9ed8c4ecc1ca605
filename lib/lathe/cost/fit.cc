#include "lathe/cost/fit.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "lathe/cost/advice.h"

namespace lathe::cost {
namespace {

using recipe::Recipe;
using recipe::ResolvedModel;

Error too_large(const Recipe& given, const Settled& settled, std::string hint) {
  const Plan::Memory& memory = settled.plan.memory;
  const bool open = settled.budgeted || !given.training.batch_size.samples;
  Diagnostic place = given.at(settled.budgeted ? "training.activation_checkpointing" : "training.batch_size");
  const std::string limit = bytes_text(static_cast<Amount>(settled.limit_bytes));
  place.problem = std::string(open ? "the least that it allows" : "the run") + " needs " + bytes_text(memory.peak) +
                  " (weights " + bytes_text(memory.weights) + ", activations " + bytes_text(memory.activations) +
                  "; the peak is in " + memory.peak_phase + "), " +
                  (settled.budgeted ? "the budget is " + limit : limit + " are there");
  place.hint = std::move(hint);
  return {ErrorKind::Resource, std::move(place)};
}

// The policy that recomputes most: all layers but the last.
recipe::Checkpointing recompute_layers(int64_t count) {
  using Kind = recipe::Checkpointing::Kind;
  return count < 1 ? recipe::Checkpointing{Kind::Elementwise} : recipe::Checkpointing{Kind::Layers, count};
}

// The choices of one recipe.
class Settling {
 public:
  Settling(const Recipe& recipe, const TrainedModel& model, int64_t available_bytes)
      : model_(model), layers_(arch::num_layers(model.arch())) {
    const recipe::Checkpointing& policy = recipe.training.activation_checkpointing;
    settled_.recipe = recipe;
    settled_.budgeted = policy.kind == recipe::Checkpointing::Kind::Budget && policy.budget_bytes < available_bytes;
    settled_.limit_bytes = settled_.budgeted ? policy.budget_bytes : available_bytes;
    any_policy_ = policy.kind == recipe::Checkpointing::Kind::Budget;
  }

  Settled run() {
    const recipe::Training& training = settled_.recipe.training;
    if (training.batch_size.samples) {
      choose_policy();
      return std::move(settled_);
    }
    const std::vector<int64_t> sizes = divisors(*training.global_batch_size);
    const auto exceeds = [&](int64_t size) {
      set_batch(size);
      choose_policy();
      return !settled_.fits();
    };
    // A smaller batch needs less: the sizes that do not fit stand before those that do.
    const auto largest = std::partition_point(sizes.begin(), sizes.end(), exceeds);
    exceeds(largest == sizes.end() ? sizes.back() : *largest);
    return std::move(settled_);
  }

 private:
  void set_batch(int64_t size) {
    Recipe& recipe = settled_.recipe;
    recipe = with_batches(std::move(recipe), size, *recipe.training.global_batch_size / size);
  }

  // The policy of a budget that recomputes least: nothing, elementwise, or the smallest number of layers. The more
  // layers, the lower the peak, so that halving finds it.
  void choose_policy() {
    using Kind = recipe::Checkpointing::Kind;
    if (!any_policy_) return plan();
    if (holds({Kind::None}) || holds({Kind::Elementwise})) return;
    int64_t exceeds = 0, within = layers_ - 1;
    if (within < 1 || !holds(recompute_layers(within))) return;
    Settled found = settled_;
    while (within - exceeds > 1) {
      const int64_t middle = exceeds + (within - exceeds) / 2;
      const bool fits = holds(recompute_layers(middle));
      (fits ? within : exceeds) = middle;
      if (fits) found = settled_;
    }
    settled_ = std::move(found);
  }

  bool holds(const recipe::Checkpointing& policy) {
    settled_.recipe.training.activation_checkpointing = policy;
    plan();
    return settled_.fits();
  }

  void plan() { settled_.plan = make_plan(settled_.recipe, model_); }

  const TrainedModel& model_;
  int64_t layers_;
  bool any_policy_;
  Settled settled_;
};

}  // namespace

int64_t plannable_bytes(int64_t free_bytes) { return std::max<int64_t>(0, free_bytes - free_bytes / 20); }

Settled settle(const Recipe& recipe, const ResolvedModel& resolved, int64_t available_bytes) {
  return settle(recipe, TrainedModel(recipe, resolved), available_bytes);
}

Settled settle(const Recipe& recipe, const TrainedModel& model, int64_t available_bytes) {
  return Settling(recipe, model, available_bytes).run();
}

Settled require_fit(const Recipe& recipe, const ResolvedModel& resolved, int64_t available_bytes) {
  Settled settled = settle(recipe, resolved, available_bytes);
  if (settled.fits()) return settled;
  const std::optional<Change> change = fitting_change(recipe, resolved, available_bytes);
  if (change)
    throw too_large(recipe, settled,
                    command_line_text(change->overrides) + " needs " + bytes_text(change->plan.memory.peak));
  throw too_large(
      recipe, settled,
      settled.budgeted ? "a larger budget, or a smaller model" : "a machine with more memory, or a smaller model");
}

std::optional<int64_t> largest_batch(const Recipe& recipe, const ResolvedModel& resolved, int64_t available_bytes) {
  const TrainedModel model(recipe, resolved);
  const auto settled = [&](int64_t size) {
    Recipe candidate = with_batches(recipe, size, recipe.training.gradient_accumulation_steps);
    candidate.training.global_batch_size.reset();
    return settle(candidate, model, available_bytes);
  };
  const Settled one = settled(1);
  if (!one.fits()) return std::nullopt;
  const Amount least = one.plan.memory.peak, limit = static_cast<Amount>(one.limit_bytes);
  // The peak is nearly a line in the size: aim along it; where it is not, halve what is left.
  constexpr int kAimed = 8;
  int64_t fits = 1, exceeds = static_cast<int64_t>(recipe::kMaxCount) + 1, guess = 2;
  for (int step = 0; exceeds - fits > 1; ++step) {
    const Settled tried = settled(guess);
    (tried.fits() ? fits : exceeds) = guess;
    const Amount slope = (tried.plan.memory.peak - least) / static_cast<Amount>(guess - 1);
    const Amount aim = slope > 0 ? 1 + std::floor((limit - least) / slope) : recipe::kMaxCount;
    guess =
        step < kAimed && aim < static_cast<Amount>(exceeds) ? static_cast<int64_t>(aim) : fits + (exceeds - fits) / 2;
    guess = std::clamp(guess, fits + 1, std::max(fits + 1, exceeds - 1));
  }
  return fits;
}

}  // namespace lathe::cost
