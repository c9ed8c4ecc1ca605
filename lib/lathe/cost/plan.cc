#include "lathe/cost/plan.h"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "lathe/cost/parameters.h"

namespace lathe::cost {
namespace {

constexpr Amount kIndexBytes = 8;
constexpr int64_t kNormChunk = int64_t{1} << 18;  // optim::clip_gradients goes through a gradient in such pieces

constexpr const char* kDecoderKernels =
    "activations in float32; RMSNorm, rotation and SwiGLU by hand; attention in tiles over the whole square of its "
    "tokens; head and loss 256 tokens at a time; experts evenly loaded";

// One optimizer step followed through a ledger.
class StepPlanner {
 public:
  StepPlanner(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, std::vector<Amount> fullest)
      : recipe_(recipe), model_(recipe, resolved, std::move(fullest)) {
    plan_.batch_size = recipe.training.batch_size.samples.value_or(1);
    plan_.gradient_accumulation_steps = recipe.training.gradient_accumulation_steps;
    plan_.max_length = resolved.max_length;
    if (arch::is_causal(model_.arch())) plan_.assumes = kDecoderKernels;
    plan_.threads = recipe.training.threads;
    plan_.checkpointing = recipe.training.activation_checkpointing;
    batch_ = {static_cast<Amount>(plan_.batch_size), static_cast<Amount>(plan_.max_length)};
  }

  Plan run() {
    ParameterCount count = count_parameters(model_.arch(), model_.num_labels());
    plan_.parameters = {model_.base_parameters(), model_.adapter_parameters(), model_.trainable_parameters(),
                        count.active, std::move(count.kinds)};
    plan_.memory.weights = model_.weight_bytes();
    plan_.memory.optimizer = optimizer_bytes();
    plan_.memory.checkpoint = checkpoint_bytes();
    plan_.memory.logits = logits_bytes(model_, batch_);
    plan_.memory.activations = micro_batch();
    plan_.moved_bytes = 2 * ledger_.written_bytes() * static_cast<Amount>(plan_.gradient_accumulation_steps);
    // The optimizer reads weights, gradients and state, and writes weights and state.
    plan_.moved_bytes += 3 * model_.trainable_parameters() * kFloatBytes + 2 * plan_.memory.optimizer;
    count_flops(1, plan_.gradient_accumulation_steps);
    if (plan_.gradient_accumulation_steps > 1) micro_batch();  // gradients are there from the first
    update();
    if (!recipe_.data.eval.empty() || recipe_.data.eval_fraction > 0) evaluate();
    find_peak();
    return std::move(plan_);
  }

 private:
  // What stays is not in the ledger, so that a small step beside huge weights keeps its digits.
  void find_peak() {
    Plan::Memory& memory = plan_.memory;
    const Amount loading = model_.loading_peak_bytes(), gradients = ledger_.peak_gradient_bytes();
    memory.peak = memory.weights + memory.optimizer + memory.checkpoint + ledger_.peak_bytes();
    memory.peak_phase = ledger_.peak_phase();
    memory.at_peak = {{"weights", memory.weights},
                      {"optimizer", memory.optimizer},
                      {"checkpoint", memory.checkpoint},
                      {"gradients", gradients},
                      {"activations", ledger_.peak_bytes() - gradients}};
    if (loading <= memory.peak) return;
    memory.peak = loading;
    memory.peak_phase = "loading";
    memory.at_peak = {{"loading", loading}};
  }

  Amount optimizer_bytes() const {
    const recipe::Optimizer& optimizer = recipe_.optimizer;
    const bool sgd = optimizer.type == recipe::OptimizerType::Sgd;
    const Amount copies = sgd ? (optimizer.momentum != 0 ? 1 : 0) : 2;
    return copies * model_.trainable_parameters() * kFloatBytes;
  }

  // One that is written while training goes on takes copies; the last one, and one that a signal asks for, none.
  Amount checkpoint_bytes() const {
    const recipe::Training& training = recipe_.training;
    const bool between =
        training.checkpoint_every_steps > 0 || training.checkpoint_every_minutes > 0 || training.keep_best;
    return between ? model_.trainable_parameters() * kFloatBytes + plan_.memory.optimizer : 0;
  }

  // Returns what is kept from the forward pass to the backward pass.
  Amount micro_batch() {
    const Amount gradients = ledger_.gradient_bytes(), before = ledger_.live_bytes();
    ledger_.enter("forward");
    Value output;
    {
      const Buffer ids = ledger_.allocate(3 * batch_.rows() * kIndexBytes);
      output = forward(ledger_, model_, batch_, /*training=*/true, plan_.checkpointing);
    }
    if (plan_.memory.kept.empty()) note_kept();
    const Amount kept = ledger_.live_bytes() - before - (ledger_.gradient_bytes() - gradients);
    ledger_.enter("backward");
    backward(ledger_, model_, output);
    return kept;
  }

  void note_kept() {
    constexpr std::array<std::pair<Site, const char*>, 7> kParts = {{{Site::Embeddings, "embeddings"},
                                                                     {Site::Attention, "attention"},
                                                                     {Site::TokenMixing, "token mixing"},
                                                                     {Site::ChannelMixing, "channel mixing"},
                                                                     {Site::Mlp, "mlp"},
                                                                     {Site::Experts, "experts"},
                                                                     {Site::Head, "head"}}};
    for (const auto& [site, name] : kParts) {
      if (ledger_.live_bytes(site) > 0) plan_.memory.kept.emplace_back(name, ledger_.live_bytes(site));
    }
  }

  void count_flops(int64_t from_batches, int64_t to_batches) {
    const Amount factor = static_cast<Amount>(to_batches) / static_cast<Amount>(from_batches);
    for (size_t part = 0; part < kNumParts; ++part) {
      const auto spent = [&](Pass pass) {
        const Amount passes = pass == Pass::Forward && looks_ahead() ? 2 : 1;
        return passes * factor * ledger_.flops(pass, static_cast<Part>(part));
      };
      plan_.flops.forward += spent(Pass::Forward);
      plan_.flops.backward += spent(Pass::Backward);
      plan_.flops.recompute += spent(Pass::Recompute);
      const Amount sum = spent(Pass::Forward) + spent(Pass::Backward) + spent(Pass::Recompute);
      const Part which = static_cast<Part>(part);
      (which == Part::Linear    ? plan_.flops.linear
       : which == Part::Adapter ? plan_.flops.adapter
                                : plan_.flops.attention) += sum;
    }
  }

  // Whether a window is run through once before it is trained on, for the balance of experts.
  bool looks_ahead() const {
    const auto& experts = arch::mlp_experts(model_.arch());
    return experts && plan_.gradient_accumulation_steps > 1 &&
           (experts->aux_loss_weight > 0 || experts->z_loss_weight > 0);
  }

  void update() {
    ledger_.enter("optimizer");
    plan_.memory.gradients = ledger_.gradient_bytes();
    const Amount piece = std::min(ledger_.largest_gradient_bytes() / kFloatBytes, static_cast<Amount>(kNormChunk));
    { const Buffer doubles = ledger_.allocate(2 * piece * sizeof(double)); }
    ledger_.drop_gradients();
  }

  void evaluate() {
    ledger_.enter("evaluation");
    ledger_.without_gradient([&] { return forward(ledger_, model_, batch_, /*training=*/false, {}); });
  }

  const recipe::Recipe& recipe_;
  TrainedModel model_;
  Batch batch_;
  Plan plan_;
  Ledger ledger_;
};

Error too_large(Diagnostic place, const std::string& what, const Plan& plan, int64_t available, std::string hint) {
  place.problem = what + " needs " + bytes_text(plan.memory.peak) + " (weights " + bytes_text(plan.memory.weights) +
                  ", activations " + bytes_text(plan.memory.activations) + "; the peak is in " +
                  plan.memory.peak_phase + "), " + bytes_text(static_cast<Amount>(available)) + " are there";
  place.hint = std::move(hint);
  return {ErrorKind::Resource, std::move(place)};
}

bool fits(const Plan& plan, int64_t available) { return plan.memory.peak <= static_cast<Amount>(available); }

recipe::Recipe with(recipe::Recipe recipe, int64_t batch_size, int64_t accumulation,
                    const recipe::Checkpointing& policy) {
  recipe.training.batch_size.samples = batch_size;
  recipe.training.gradient_accumulation_steps = accumulation;
  recipe.training.activation_checkpointing = policy;
  return recipe;
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

// All of them, the largest first.
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

}  // namespace

Plan make_plan(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, std::vector<Amount> fullest) {
  return StepPlanner(recipe, resolved, std::move(fullest)).run();
}

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
                  budgeted ? "a larger budget, or a smaller batch_size"
                           : "activation_checkpointing: full, or a smaller model.max_length");
}

Plan require_fit(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, int64_t available_bytes) {
  Plan plan = make_plan(recipe, resolved);
  if (fits(plan, available_bytes)) return plan;
  // What would do: the policies for this batch, then smaller batches that recompute all.
  using Kind = recipe::Checkpointing::Kind;
  std::string advice = "a machine with more memory, or a smaller model";
  const int64_t batch_size = plan.batch_size;
  for (int64_t size = batch_size; size >= 1; size = size == 1 ? 0 : size / 2) {
    for (const auto& [kind, word] :
         {std::pair(Kind::None, ""), std::pair(Kind::Elementwise, "elementwise"), std::pair(Kind::Full, "full")}) {
      const Plan other = make_plan(with(recipe, size, recipe.training.gradient_accumulation_steps, {kind}), resolved);
      if (!fits(other, available_bytes)) continue;
      const std::string policy = *word == 0 ? "" : std::string("training.activation_checkpointing: ") + word;
      const std::string batch = size == batch_size ? "" : "training.batch_size: " + std::to_string(size);
      advice = batch + (batch.empty() || policy.empty() ? "" : " with ") + policy + " needs " +
               bytes_text(other.memory.peak);
      size = 1;
      break;
    }
  }
  throw too_large(recipe.at("training.batch_size"), "the run", plan, available_bytes, advice);
}

Json to_json(const Plan& plan, std::optional<double> seconds) {
  const Plan::Memory& memory = plan.memory;
  Json kinds = Json::object(), at_peak = Json::object(), kept = Json::object();
  for (const auto& [part, bytes] : memory.kept) kept[part] = whole(bytes);
  for (const auto& [part, bytes] : memory.at_peak) at_peak[part] = whole(bytes);
  for (const auto& [kind, count] : plan.parameters.kinds) kinds[kind] = whole(count);
  return {{"parameters",
           {{"base", whole(plan.parameters.base)},
            {"adapter", whole(plan.parameters.adapter)},
            {"total", whole(plan.parameters.total())},
            {"trainable", whole(plan.parameters.trainable)},
            {"active", whole(plan.parameters.active)},
            {"kinds", std::move(kinds)}}},
          {"flops_per_step",
           {{"forward", whole(plan.flops.forward)},
            {"backward", whole(plan.flops.backward)},
            {"recompute", whole(plan.flops.recompute)},
            {"total", whole(plan.flops.total())},
            {"linear", whole(plan.flops.linear)},
            {"adapter", whole(plan.flops.adapter)},
            {"attention", whole(plan.flops.attention)}}},
          {"memory_bytes",
           {{"weights", whole(memory.weights)},
            {"gradients", whole(memory.gradients)},
            {"optimizer", whole(memory.optimizer)},
            {"checkpoint", whole(memory.checkpoint)},
            {"activations", whole(memory.activations)},
            {"logits", whole(memory.logits)},
            {"peak", whole(memory.peak)}}},
          {"activations_by_part", std::move(kept)},
          {"peak_phase", memory.peak_phase},
          {"at_peak", std::move(at_peak)},
          {"assumes", plan.assumes},
          {"batch_size", plan.batch_size},
          {"gradient_accumulation_steps", plan.gradient_accumulation_steps},
          {"max_length", plan.max_length},
          {"seconds_per_step", seconds ? Json(*seconds) : Json(nullptr)}};
}

}  // namespace lathe::cost
