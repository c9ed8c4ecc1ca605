#include "lathe/cost/advice.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "lathe/config/bind.h"

namespace lathe::cost {
namespace {

using Kind = recipe::Checkpointing::Kind;
using recipe::Recipe;
using recipe::ResolvedModel;

class Changes {
 public:
  Changes(const Recipe& recipe, const ResolvedModel& resolved, const Plan& plan)
      : recipe_(recipe), resolved_(resolved), plan_(plan) {}

  std::vector<Change> run() {
    batches();
    policies();
    storage();
    if (resolved_.adapter) {
      ranks();
    } else {
      add("adapter={type: lora, rank: 8, alpha: 16}", [](Recipe& recipe) {
        recipe.adapter.type = recipe::AdapterType::LoRA;
        recipe.adapter.rank = 8;
        recipe.adapter.alpha = 16;
      });
    }
    lengths();
    std::stable_sort(changes_.begin(), changes_.end(), [](const Change& a, const Change& b) {
      return std::pair(a.plan.memory.peak, a.plan.flops.total()) < std::pair(b.plan.memory.peak, b.plan.flops.total());
    });
    return std::move(changes_);
  }

 private:
  template <typename Turn>
  void add(std::string overrides, Turn turn) {
    Recipe changed = recipe_;
    turn(changed);
    Plan plan = make_plan(changed, recipe::resolve_model(changed));
    const bool same =
        plan.memory.peak == plan_.memory.peak && plan.flops.total() == plan_.flops.total();  // it was so already
    if (!same) changes_.push_back({std::move(overrides), std::move(plan)});
  }

  // The same optimizer step in twice as many pieces.
  void batches() {
    const int64_t batch = recipe_.training.batch_size.samples.value_or(1);
    const int64_t accumulation = recipe_.training.gradient_accumulation_steps;
    if (batch % 2 != 0 || accumulation > static_cast<int64_t>(recipe::kMaxCount) / 2) return;
    add("training.batch_size=" + std::to_string(batch / 2) +
            " training.gradient_accumulation_steps=" + std::to_string(2 * accumulation),
        [&](Recipe& recipe) {
          recipe.training.batch_size.samples = batch / 2;
          recipe.training.gradient_accumulation_steps = 2 * accumulation;
        });
  }

  void policies() {
    const recipe::Checkpointing now = recipe_.training.activation_checkpointing;
    for (const recipe::Checkpointing& policy :
         {recipe::Checkpointing{Kind::None}, {Kind::Elementwise}, {Kind::Every, 2}, {Kind::Full}}) {
      if (policy.kind == now.kind && policy.count == now.count) continue;
      add("training.activation_checkpointing=" + config::Codec<recipe::Checkpointing>::write(policy),
          [&](Recipe& recipe) { recipe.training.activation_checkpointing = policy; });
    }
  }

  void storage() {
    const bool four_bits = recipe_.quant.type != recipe::QuantType::None;
    const bool stored = arch::has_four_bit(resolved_.match(2));
    if (four_bits && !stored) {
      add("quant.type=none", [](Recipe& recipe) { recipe.quant = {}; });
      if (!recipe_.quant.double_quant)
        add("quant.double_quant=true", [](Recipe& recipe) { recipe.quant.double_quant = true; });
    } else if (!stored && resolved_.adapter) {
      add("quant.type=nf4", [](Recipe& recipe) { recipe.quant.type = recipe::QuantType::Nf4; });
    }
    using recipe::StorageType;
    const StorageType dtype = recipe_.model.dtype;
    for (const auto& [type, other] :
         {std::pair(StorageType::BFloat16, "bfloat16"), std::pair(StorageType::Float32, "float32")}) {
      if (type == dtype) continue;
      const StorageType wanted = type;
      add(std::string("model.dtype=") + other, [&](Recipe& recipe) { recipe.model.dtype = wanted; });
    }
  }

  void ranks() {
    if (recipe_.adapter.from) return;
    const int64_t rank = resolved_.adapter->r;
    for (const int64_t other : {rank / 2, 2 * rank}) {
      if (other < 1 || static_cast<double>(other) > recipe::kMaxRank) continue;
      add("adapter.rank=" + std::to_string(other), [&](Recipe& recipe) { recipe.adapter.rank = other; });
    }
  }

  void lengths() {
    const int64_t half = resolved_.max_length / 2;
    constexpr int64_t kLeast = 3;  // model.max_length's
    if (arch::sees_images(resolved_.config.arch) || half < kLeast) return;
    add("model.max_length=" + std::to_string(half), [&](Recipe& recipe) { recipe.model.max_length = half; });
  }

  const Recipe& recipe_;
  const ResolvedModel& resolved_;
  const Plan& plan_;
  std::vector<Change> changes_;
};

}  // namespace

std::vector<Change> possible_changes(const Recipe& recipe, const ResolvedModel& resolved, const Plan& plan) {
  return Changes(recipe, resolved, plan).run();
}

std::optional<int64_t> largest_batch(const Recipe& recipe, const ResolvedModel& resolved, Amount available_bytes) {
  const auto peak = [&](int64_t size) {
    Recipe candidate = recipe;
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

Json to_json(const std::vector<Change>& changes) {
  Json list = Json::array();
  for (const Change& change : changes) {
    list.push_back({{"change", change.overrides},
                    {"peak", whole(change.plan.memory.peak)},
                    {"flops_per_step", whole(change.plan.flops.total())},
                    {"trainable", whole(change.plan.parameters.trainable)}});
  }
  return list;
}

}  // namespace lathe::cost
