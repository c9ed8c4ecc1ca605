#include "lathe/cost/advice.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "lathe/config/bind.h"

namespace lathe::cost {
namespace {

using Kind = recipe::Checkpointing::Kind;
using recipe::Recipe;
using recipe::ResolvedModel;

// Of the same optimizer step, in micro-batches of `size`.
std::vector<std::string> batch_words(const Recipe& recipe, int64_t size, int64_t accumulation) {
  std::vector<std::string> words = {"training.batch_size=" + std::to_string(size),
                                    "training.gradient_accumulation_steps=" + std::to_string(accumulation)};
  if (recipe.training.global_batch_size) words.push_back("~training.global_batch_size");
  return words;
}

std::string policy_word(const recipe::Checkpointing& policy) {
  return "training.activation_checkpointing=" + config::Codec<recipe::Checkpointing>::write(policy);
}

constexpr const char* kAdapterWord = "adapter={type: lora, rank: 8, alpha: 16}";
void take_adapter(Recipe& recipe) {
  recipe.adapter.type = recipe::AdapterType::LoRA;
  recipe.adapter.rank = 8;
  recipe.adapter.alpha = 16;
}

bool may_take_four_bits(const Recipe& recipe, const ResolvedModel& resolved) {
  return recipe.quant.type == recipe::QuantType::None && !arch::has_four_bit(resolved.match(2));
}

// Of texts; none below what model.max_length may be.
std::optional<int64_t> half_length(const ResolvedModel& resolved) {
  constexpr int64_t kLeast = 3;
  const int64_t half = resolved.max_length / 2;
  if (arch::sees_images(resolved.config.arch) || half < kLeast) return std::nullopt;
  return half;
}

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
      add(kAdapterWord, take_adapter);
    }
    lengths();
    std::stable_sort(changes_.begin(), changes_.end(), [](const Change& a, const Change& b) {
      return std::pair(a.plan.memory.peak, a.plan.flops.total()) < std::pair(b.plan.memory.peak, b.plan.flops.total());
    });
    return std::move(changes_);
  }

 private:
  template <typename Turn>
  void add(std::string override_word, Turn turn) {
    add(std::vector{std::move(override_word)}, turn);
  }
  template <typename Turn>
  void add(std::vector<std::string> overrides, Turn turn) {
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
    add(batch_words(recipe_, batch / 2, 2 * accumulation),
        [&](Recipe& recipe) { recipe = with_batches(recipe, batch / 2, 2 * accumulation); });
  }

  void policies() {
    const recipe::Checkpointing now = recipe_.training.activation_checkpointing;
    for (const recipe::Checkpointing& policy :
         {recipe::Checkpointing{Kind::None}, {Kind::Elementwise}, {Kind::Every, 2}, {Kind::Full}}) {
      if (policy.kind == now.kind && policy.count == now.count) continue;
      add(policy_word(policy), [&](Recipe& recipe) { recipe.training.activation_checkpointing = policy; });
    }
  }

  void storage() {
    if (recipe_.quant.type != recipe::QuantType::None) {
      add("quant.type=none", [](Recipe& recipe) { recipe.quant = {}; });
      if (!recipe_.quant.double_quant)
        add("quant.double_quant=true", [](Recipe& recipe) { recipe.quant.double_quant = true; });
    } else if (may_take_four_bits(recipe_, resolved_) && resolved_.adapter) {
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
    const std::optional<int64_t> half = half_length(resolved_);
    if (half)
      add("model.max_length=" + std::to_string(*half), [&](Recipe& recipe) { recipe.model.max_length = *half; });
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

std::optional<Change> fitting_change(const Recipe& recipe, const ResolvedModel& resolved, Amount available_bytes) {
  Recipe base = recipe;
  std::string policy, adapter, quant, length;
  const int64_t batch = recipe.training.batch_size.samples.value_or(1);
  const int64_t accumulation = recipe.training.gradient_accumulation_steps;
  const std::vector<int64_t> sizes = divisors(batch);
  const auto in_pieces = [&](int64_t size) -> std::optional<Recipe> {
    if (batch / size > static_cast<int64_t>(recipe::kMaxCount) / accumulation) return std::nullopt;
    return with_batches(base, size, accumulation * (batch / size));
  };
  const auto found = [&]() -> std::optional<Change> {
    const ResolvedModel model = recipe::resolve_model(base);
    const auto exceeds = [&](int64_t size) {
      const std::optional<Recipe> pieces = in_pieces(size);
      return pieces && make_plan(*pieces, model).memory.peak > available_bytes;
    };
    const auto size = std::partition_point(sizes.begin(), sizes.end(), exceeds);
    if (size == sizes.end() || !in_pieces(*size)) return std::nullopt;
    std::vector<std::string> words;
    if (*size != batch) words = batch_words(recipe, *size, accumulation * (batch / *size));
    for (const std::string* word : {&policy, &adapter, &quant, &length})
      if (!word->empty()) words.push_back(*word);
    return Change{std::move(words), make_plan(*in_pieces(*size), model)};
  };
  if (auto change = found()) return change;
  const Kind now = base.training.activation_checkpointing.kind;
  for (const Kind kind : {Kind::Elementwise, Kind::Full}) {
    if (now == Kind::Full || now == kind) continue;
    base.training.activation_checkpointing = {kind};
    policy = policy_word({kind});
    if (auto change = found()) return change;
  }
  if (!resolved.adapter) {
    take_adapter(base);
    adapter = kAdapterWord;
    if (auto change = found()) return change;
  }
  if (may_take_four_bits(base, resolved)) {
    base.quant.type = recipe::QuantType::Nf4;
    quant = "quant.type=nf4";
    if (auto change = found()) return change;
  }
  while (const std::optional<int64_t> half = half_length(recipe::resolve_model(base))) {
    base.model.max_length = *half;
    length = "model.max_length=" + std::to_string(*half);
    if (auto change = found()) return change;
  }
  return std::nullopt;
}

std::vector<int64_t> divisors(int64_t number) {
  std::vector<int64_t> found;
  for (int64_t small = 1; small * small <= number; ++small) {
    if (number % small != 0) continue;
    found.push_back(small);
    if (small * small != number) found.push_back(number / small);
  }
  std::sort(found.begin(), found.end(), std::greater<>());
  return found;
}

recipe::Recipe with_batches(recipe::Recipe recipe, int64_t batch_size, int64_t accumulation) {
  recipe.training.batch_size.samples = batch_size;
  recipe.training.gradient_accumulation_steps = accumulation;
  return recipe;
}

std::string command_line_text(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) {
    const bool plain = word.find_first_of(" {}[]~*?$'\"") == std::string::npos;
    text += (text.empty() ? "" : " ") + (plain ? word : "'" + word + "'");
  }
  return text;
}

Json to_json(const std::vector<Change>& changes) {
  Json list = Json::array();
  for (const Change& change : changes) {
    list.push_back({{"change", command_line_text(change.overrides)},
                    {"overrides", change.overrides},
                    {"peak", whole(change.plan.memory.peak)},
                    {"flops_per_step", whole(change.plan.flops.total())},
                    {"trainable", whole(change.plan.parameters.trainable)}});
  }
  return list;
}

}  // namespace lathe::cost
