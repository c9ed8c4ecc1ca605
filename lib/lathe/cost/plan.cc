#include "lathe/cost/plan.h"

#include <algorithm>
#include <filesystem>
#include <limits>

namespace lathe::cost {
namespace {

constexpr Amount kIndexBytes = 8;
constexpr int64_t kNormChunk = int64_t{1} << 18;  // optim::clip_gradients goes through a gradient in such pieces

// One optimizer step followed through a ledger.
class StepPlanner {
 public:
  StepPlanner(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved)
      : recipe_(recipe), model_(recipe, resolved) {
    plan_.batch_size = recipe.training.batch_size.samples.value_or(1);
    plan_.gradient_accumulation_steps = recipe.training.gradient_accumulation_steps;
    plan_.max_length = resolved.max_length;
    plan_.checkpointing = recipe.training.activation_checkpointing;
    batch_ = {static_cast<Amount>(plan_.batch_size), static_cast<Amount>(plan_.max_length)};
  }

  Plan run() {
    plan_.parameters = {model_.base_parameters(), model_.adapter_parameters(), model_.trainable_parameters()};
    plan_.memory.weights = model_.weight_bytes();
    plan_.memory.optimizer = optimizer_bytes();
    plan_.memory.checkpoint = checkpoint_bytes();
    plan_.memory.logits = batch_.num_samples * static_cast<Amount>(model_.num_labels()) * kFloatBytes;
    ledger_.enter("loading");
    const Buffer weights = ledger_.allocate(plan_.memory.weights);
    { const Buffer files = ledger_.allocate(model_.loading_bytes()); }
    const Buffer state = ledger_.allocate(plan_.memory.optimizer);
    const Buffer written = ledger_.allocate(plan_.memory.checkpoint);
    micro_batch();
    count_flops(1, plan_.gradient_accumulation_steps);
    if (plan_.gradient_accumulation_steps > 1) micro_batch();  // gradients are there from the first
    update();
    if (!recipe_.data.eval.empty() || recipe_.data.eval_fraction > 0) evaluate();
    plan_.memory.peak = ledger_.peak_bytes();
    plan_.memory.peak_phase = ledger_.peak_phase();
    return plan_;
  }

 private:
  Amount optimizer_bytes() const {
    const recipe::Optimizer& optimizer = recipe_.optimizer;
    const bool sgd = optimizer.type == recipe::OptimizerType::Sgd;
    const Amount copies = sgd ? (optimizer.momentum != 0 ? 1 : 0) : 2;
    return copies * model_.trainable_parameters() * kFloatBytes;
  }

  // The final checkpoint is written when nothing else is live; one in between, while training goes on.
  Amount checkpoint_bytes() const {
    const bool between = recipe_.training.checkpoint_every_steps > 0 || recipe_.training.checkpoint_every_minutes > 0;
    return between ? model_.trainable_parameters() * kFloatBytes + plan_.memory.optimizer : 0;
  }

  void micro_batch() {
    const Amount fixed = ledger_.live_bytes();
    ledger_.enter("forward");
    Value logits;
    {
      const Buffer ids = ledger_.allocate(3 * batch_.rows() * kIndexBytes);
      logits = forward(ledger_, model_, batch_, /*training=*/true, plan_.checkpointing);
    }
    plan_.memory.activations = ledger_.live_bytes() - fixed;
    ledger_.enter("backward");
    cross_entropy_backward(ledger_, logits);
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

// Operations per second of products, as `lathe doctor` left it in the cache.
std::optional<double> measured_gemm_flops() {
  const std::string file = config::cache_directory() + "/machine.json";
  std::error_code unknown;
  if (!std::filesystem::exists(file, unknown)) return std::nullopt;
  try {
    return JsonObject(read_json_file(file, 1 << 16), file).number("gemm_flops");
  } catch (const Error&) {
    return std::nullopt;
  }
}

Error too_large(Diagnostic place, const std::string& what, const Plan& plan, int64_t available, std::string hint) {
  place.problem = what + " needs " + format_bytes(static_cast<uint64_t>(plan.memory.peak)) + " (weights " +
                  format_bytes(static_cast<uint64_t>(plan.memory.weights)) + ", activations " +
                  format_bytes(static_cast<uint64_t>(plan.memory.activations)) + "; the peak is in " +
                  plan.memory.peak_phase + "), " + format_bytes(static_cast<uint64_t>(available)) + " are there";
  place.hint = std::move(hint);
  return {ErrorKind::Resource, std::move(place)};
}

bool fits(const Plan& plan, int64_t available) { return plan.memory.peak <= static_cast<Amount>(available); }

// The policies in the order of what they recompute, the least first.
std::vector<recipe::Checkpointing> policies(int64_t num_layers) {
  using Kind = recipe::Checkpointing::Kind;
  std::vector<recipe::Checkpointing> all = {{Kind::None}, {Kind::Elementwise}};
  for (int64_t m = 1; m < num_layers; ++m) all.push_back({Kind::Layers, m});
  return all;
}

recipe::Recipe with(recipe::Recipe recipe, int64_t batch_size, int64_t accumulation,
                    const recipe::Checkpointing& policy) {
  recipe.training.batch_size.samples = batch_size;
  recipe.training.gradient_accumulation_steps = accumulation;
  recipe.training.activation_checkpointing = policy;
  return recipe;
}

// The budget's policy for this batch size, or none.
std::optional<recipe::Checkpointing> policy_within(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved,
                                                   int64_t budget) {
  for (const recipe::Checkpointing& policy : policies(arch::num_layers(resolved.config.arch))) {
    recipe::Recipe candidate = recipe;
    candidate.training.activation_checkpointing = policy;
    if (fits(make_plan(candidate, resolved), budget)) return policy;
  }
  return std::nullopt;
}

}  // namespace

Plan make_plan(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved) {
  Plan plan = StepPlanner(recipe, resolved).run();
  if (const auto speed = measured_gemm_flops()) plan.seconds = plan.flops.total() / *speed;
  return plan;
}

recipe::Recipe settle(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, int64_t available_bytes) {
  const recipe::Training& training = recipe.training;
  const bool budgeted = training.activation_checkpointing.kind == recipe::Checkpointing::Kind::Budget;
  const int64_t limit =
      budgeted ? std::min(available_bytes, training.activation_checkpointing.budget_bytes) : available_bytes;
  std::vector<int64_t> sizes;
  if (training.batch_size.samples) {
    sizes = {*training.batch_size.samples};
  } else {
    for (int64_t size = *training.global_batch_size; size >= 1; --size)
      if (*training.global_batch_size % size == 0) sizes.push_back(size);
  }
  if (sizes.size() == 1 && !budgeted && training.batch_size.samples) return recipe;
  recipe::Recipe smallest;
  for (const int64_t size : sizes) {
    const int64_t accumulation =
        training.batch_size.samples ? training.gradient_accumulation_steps : *training.global_batch_size / size;
    recipe::Recipe candidate =
        with(recipe, size, accumulation, budgeted ? recipe::Checkpointing{} : training.activation_checkpointing);
    if (budgeted) {
      if (const auto policy = policy_within(candidate, resolved, limit))
        return with(candidate, size, accumulation, *policy);
      candidate.training.activation_checkpointing = policies(arch::num_layers(resolved.config.arch)).back();
    } else if (fits(make_plan(candidate, resolved), limit)) {
      return candidate;
    }
    smallest = std::move(candidate);
  }
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
               format_bytes(static_cast<uint64_t>(other.memory.peak));
      size = 1;
      break;
    }
  }
  throw too_large(recipe.at("training.batch_size"), "the run", plan, available_bytes, advice);
}

Json to_json(const Plan& plan) {
  const auto whole = [](Amount amount) {
    return std::abs(amount) < 9e18 ? Json(static_cast<int64_t>(amount)) : Json(amount);
  };
  const Plan::Memory& memory = plan.memory;
  return {{"parameters",
           {{"base", whole(plan.parameters.base)},
            {"adapter", whole(plan.parameters.adapter)},
            {"total", whole(plan.parameters.total())},
            {"trainable", whole(plan.parameters.trainable)}}},
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
          {"peak_phase", memory.peak_phase},
          {"batch_size", plan.batch_size},
          {"gradient_accumulation_steps", plan.gradient_accumulation_steps},
          {"max_length", plan.max_length},
          {"seconds_per_step", plan.seconds ? Json(*plan.seconds) : Json(nullptr)}};
}

}  // namespace lathe::cost
