#include "lathe/cost/advice.h"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "lathe/config/bind.h"

namespace lathe::cost {
namespace {

using Kind = recipe::Checkpointing::Kind;
using recipe::Recipe;
using recipe::ResolvedModel;
using Words = std::vector<std::string>;

Words batch_words(const Recipe& recipe, int64_t size, int64_t accumulation) {
  Words words = {"training.batch_size=" + std::to_string(size),
                 "training.gradient_accumulation_steps=" + std::to_string(accumulation)};
  if (recipe.training.global_batch_size) words.emplace_back("~training.global_batch_size");
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

int64_t smallest_factor(int64_t number) {
  for (int64_t factor = 2; factor * factor <= number; ++factor)
    if (number % factor == 0) return factor;
  return number;
}

class Changes {
 public:
  Changes(const Recipe& given, const ResolvedModel& resolved, const Settled& now, int64_t available_bytes)
      : given_(given), resolved_(resolved), now_(now), available_(available_bytes) {}

  std::vector<Change> run() {
    batches();
    policies();
    storage();
    if (resolved_.adapter) {
      ranks();
    } else {
      add({kAdapterWord}, take_adapter);
    }
    lengths();
    std::stable_sort(changes_.begin(), changes_.end(), [](const Change& a, const Change& b) {
      return std::pair(a.plan.memory.peak, a.plan.flops.total()) < std::pair(b.plan.memory.peak, b.plan.flops.total());
    });
    return std::move(changes_);
  }

 private:
  void add(Words overrides, const std::function<void(Recipe&)>& turn) {
    Recipe changed = given_;
    turn(changed);
    Settled settled = settle(changed, recipe::resolve_model(changed), available_);
    const Plan &then = settled.plan, &now = now_.plan;
    if (then.memory.peak == now.memory.peak && then.flops.total() == now.flops.total()) return;  // it was so already
    const bool fits = settled.fits();
    changes_.push_back({std::move(overrides), std::move(settled.plan), fits});
  }

  // The same optimizer step in more and in fewer pieces.
  void batches() {
    const int64_t batch = now_.plan.batch_size, accumulation = now_.plan.gradient_accumulation_steps;
    const auto in_pieces = [&](int64_t size, int64_t pieces) {
      add(batch_words(given_, size, pieces), [&](Recipe& recipe) {
        recipe = with_batches(recipe, size, pieces);
        recipe.training.global_batch_size.reset();
      });
    };
    if (const int64_t factor = smallest_factor(batch);
        factor > 1 && accumulation <= static_cast<int64_t>(recipe::kMaxCount) / factor)
      in_pieces(batch / factor, accumulation * factor);
    if (const int64_t factor = smallest_factor(accumulation);
        factor > 1 && batch <= static_cast<int64_t>(recipe::kMaxCount) / factor)
      in_pieces(batch * factor, accumulation / factor);
  }

  void policies() {
    const recipe::Checkpointing now = given_.training.activation_checkpointing;
    for (const recipe::Checkpointing& policy :
         {recipe::Checkpointing{Kind::None}, {Kind::Elementwise}, {Kind::Every, 2}, {Kind::Full}}) {
      if (policy.kind == now.kind && policy.count == now.count) continue;
      add({policy_word(policy)}, [&](Recipe& recipe) { recipe.training.activation_checkpointing = policy; });
    }
  }

  void storage() {
    if (given_.quant.type != recipe::QuantType::None) {
      add({"quant={type: none}"}, [](Recipe& recipe) { recipe.quant = {}; });
      if (!given_.quant.double_quant)
        add({"quant.double_quant=true"}, [](Recipe& recipe) { recipe.quant.double_quant = true; });
    } else if (may_take_four_bits(given_, resolved_) && resolved_.adapter) {
      add({"quant.type=nf4"}, [](Recipe& recipe) { recipe.quant.type = recipe::QuantType::Nf4; });
    }
    using recipe::StorageType;
    for (const auto& [type, word] : {std::pair(StorageType::BFloat16, "model.dtype=bfloat16"),
                                     std::pair(StorageType::Float32, "model.dtype=float32")}) {
      const StorageType wanted = type;
      if (wanted != given_.model.dtype) add({word}, [&](Recipe& recipe) { recipe.model.dtype = wanted; });
    }
  }

  void ranks() {
    if (given_.adapter.from) return;
    const int64_t rank = resolved_.adapter->r;
    for (const int64_t other : {rank / 2, 2 * rank}) {
      if (other < 1 || static_cast<double>(other) > recipe::kMaxRank) continue;
      add({"adapter.rank=" + std::to_string(other)}, [&](Recipe& recipe) { recipe.adapter.rank = other; });
    }
  }

  void lengths() {
    const std::optional<int64_t> half = half_length(resolved_);
    if (half)
      add({"model.max_length=" + std::to_string(*half)}, [&](Recipe& recipe) { recipe.model.max_length = *half; });
  }

  const Recipe& given_;
  const ResolvedModel& resolved_;
  const Settled& now_;
  int64_t available_;
  std::vector<Change> changes_;
};

// One knob after the other, each as far as it takes; then back with those that another made needless.
class FittingChange {
 public:
  FittingChange(const Recipe& given, const ResolvedModel& resolved, int64_t available_bytes)
      : given_(given),
        resolved_(resolved),
        available_(available_bytes),
        sizes_(given.training.batch_size.samples ? divisors(*given.training.batch_size.samples)
                                                 : std::vector<int64_t>{kSettledSize}) {}

  std::optional<Change> find() {
    if (!fits() && !turn_until_it_fits()) return std::nullopt;
    while (turn_one_back()) {
    }
    return std::move(found_);
  }

 private:
  enum Knob : uint8_t { kPolicy, kAdapter, kStorage, kQuant, kDoubleQuant, kRank, kLength, kNumKnobs };
  struct Turn {
    std::string word;
    std::function<void(Recipe&)> apply;
  };
  static constexpr int64_t kSettledSize = 0;  // batch_size: auto

  bool turn_until_it_fits() {
    const Kind given = given_.training.activation_checkpointing.kind;
    for (const Kind kind : {Kind::Elementwise, Kind::Full}) {
      if (given == Kind::Budget || given == Kind::Full || given == kind) continue;
      const recipe::Checkpointing policy{kind};
      if (turn(kPolicy, policy_word(policy),
               [policy](Recipe& recipe) { recipe.training.activation_checkpointing = policy; }))
        return true;
    }
    if (!resolved_.adapter && turn(kAdapter, kAdapterWord, take_adapter)) return true;
    if (given_.model.dtype != recipe::StorageType::BFloat16 &&
        turn(kStorage, "model.dtype=bfloat16",
             [](Recipe& recipe) { recipe.model.dtype = recipe::StorageType::BFloat16; }))
      return true;
    if (may_take_four_bits(given_, resolved_) &&
        turn(kQuant, "quant.type=nf4", [](Recipe& recipe) { recipe.quant.type = recipe::QuantType::Nf4; }))
      return true;
    if (turned().quant.type != recipe::QuantType::None && !given_.quant.double_quant &&
        turn(kDoubleQuant, "quant.double_quant=true", [](Recipe& recipe) { recipe.quant.double_quant = true; }))
      return true;
    for (int64_t rank = recipe::resolve_model(turned()).adapter->r; !given_.adapter.from && rank > 1;) {
      rank /= 2;
      if (turn(kRank, "adapter.rank=" + std::to_string(rank), [rank](Recipe& recipe) { recipe.adapter.rank = rank; }))
        return true;
    }
    while (const std::optional<int64_t> half = half_length(recipe::resolve_model(turned()))) {
      if (turn(kLength, "model.max_length=" + std::to_string(*half),
               [length = *half](Recipe& recipe) { recipe.model.max_length = length; }))
        return true;
    }
    return false;
  }

  bool turn_one_back() {
    for (size_t knob = kNumKnobs; knob-- > 0;) {
      std::optional<Turn> turn = std::exchange(turns_[knob], std::nullopt);
      if (!turn) continue;
      if (fits()) return true;
      turns_[knob] = std::move(turn);
    }
    return false;
  }

  bool turn(Knob knob, std::string word, std::function<void(Recipe&)> apply) {
    turns_[knob] = Turn{std::move(word), std::move(apply)};
    return fits();
  }

  Recipe turned() const {
    Recipe recipe = given_;
    for (const std::optional<Turn>& turn : turns_)
      if (turn) turn->apply(recipe);
    return recipe;
  }

  // The same optimizer step; none where it would take too many micro-batches.
  std::optional<Recipe> in_pieces(const Recipe& whole, int64_t size) const {
    if (size == kSettledSize) return whole;
    const int64_t accumulation = whole.training.gradient_accumulation_steps, pieces = sizes_.front() / size;
    if (pieces > static_cast<int64_t>(recipe::kMaxCount) / accumulation) return std::nullopt;
    return with_batches(whole, size, accumulation * pieces);
  }

  bool fits() {
    const Recipe whole = turned();
    const TrainedModel model(whole, recipe::resolve_model(whole));
    const auto settled = [&](int64_t size) {
      const std::optional<Recipe> pieces = in_pieces(whole, size);
      return pieces ? std::optional(settle(*pieces, model, available_)) : std::nullopt;
    };
    std::optional<Settled> result;  // the last one that did not exceed is the one that is found
    const auto size = std::partition_point(sizes_.begin(), sizes_.end(), [&](int64_t candidate) {
      std::optional<Settled> tried = settled(candidate);
      const bool exceeds = tried && !tried->fits();
      if (!exceeds) result = std::move(tried);
      return exceeds;
    });
    if (!result) return false;
    Words words;
    if (*size != sizes_.front()) words = batch_words(given_, *size, result->plan.gradient_accumulation_steps);
    for (const std::optional<Turn>& turn : turns_)
      if (turn) words.push_back(turn->word);
    found_ = Change{std::move(words), std::move(result->plan), true};
    return true;
  }

  const Recipe& given_;
  const ResolvedModel& resolved_;
  int64_t available_;
  std::vector<int64_t> sizes_;
  std::array<std::optional<Turn>, kNumKnobs> turns_;
  std::optional<Change> found_;
};

}  // namespace

std::vector<Change> possible_changes(const Recipe& given, const ResolvedModel& resolved, const Settled& now,
                                     int64_t available_bytes) {
  return Changes(given, resolved, now, available_bytes).run();
}

std::optional<Change> fitting_change(const Recipe& given, const ResolvedModel& resolved, int64_t available_bytes) {
  return FittingChange(given, resolved, available_bytes).find();
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

Recipe with_batches(Recipe recipe, int64_t batch_size, int64_t accumulation) {
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
                    {"fits", change.fits},
                    {"peak", whole(change.plan.memory.peak)},
                    {"flops_per_step", whole(change.plan.flops.total())},
                    {"trainable", whole(change.plan.parameters.trainable)}});
  }
  return list;
}

}  // namespace lathe::cost
