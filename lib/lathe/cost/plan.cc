#include "lathe/cost/plan.h"

#include <algorithm>
#include <array>
#include <utility>

#include "lathe/config/bind.h"

namespace lathe::cost {
namespace {

constexpr int64_t kNormChunk = int64_t{1} << 18;  // optim::clip_gradients goes through a gradient in such pieces

constexpr const char* kDecoderKernels =
    "  a model that Lathe does not train yet: activations in float32; RMSNorm, rotation and SwiGLU by hand\n"
    "  attention in tiles over the whole square of its tokens, whatever window config.json has\n"
    "  head and loss 256 tokens at a time\n";
constexpr const char* kFirstTokens =
    "  the last layer works on each sample's first token only: the head reads no other\n";
constexpr const char* kEvenExperts = "  experts evenly loaded\n";

std::string assumptions(const arch::Arch& arch) {
  if (const auto* decoder = std::get_if<arch::DecoderArch>(&arch))
    return std::string(kDecoderKernels) + (decoder->moe ? kEvenExperts : "");
  return std::string(std::holds_alternative<arch::BertArch>(arch) ? kFirstTokens : "") +
         (arch::mlp_experts(arch) ? kEvenExperts : "");
}

// One optimizer step followed through a ledger.
class StepPlanner {
 public:
  StepPlanner(const recipe::Recipe& recipe, const TrainedModel& model) : recipe_(recipe), model_(model) {
    plan_.batch_size = recipe.training.batch_size.samples.value_or(1);
    plan_.gradient_accumulation_steps = recipe.training.gradient_accumulation_steps;
    plan_.max_length = model_.max_length();
    plan_.assumes = assumptions(model_.arch());
    plan_.threads = recipe.training.threads;
    plan_.checkpointing = recipe.training.activation_checkpointing;
    batch_ = {static_cast<Amount>(plan_.batch_size), static_cast<Amount>(plan_.max_length)};
  }

  Plan run() {
    const ParameterCount& base = model_.base_parameters();
    plan_.parameters = {base.total, model_.adapter_parameters(), model_.trainable_parameters(), base.active,
                        base.kinds};
    plan_.memory.weights = model_.weight_bytes();
    plan_.master_copies = model_.storage() == Storage::BFloat16 && model_.all_train();
    plan_.memory.trained_weights = model_.trainable_parameters() * kFloatBytes;
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
    const Amount loading = model_.loading_peak_bytes(), gradients = ledger_.peak_gradient_bytes(),
                 temporaries = ledger_.peak_temporary_bytes();
    memory.peak = memory.weights + memory.optimizer + memory.checkpoint + ledger_.peak_bytes();
    memory.peak_phase = ledger_.peak_phase();
    memory.phases = {{"loading", loading}};
    for (const auto& [phase, bytes] : ledger_.phase_peaks())
      memory.phases.emplace_back(phase, memory.peak - ledger_.peak_bytes() + bytes);
    memory.at_peak = {{"weights", memory.weights},
                      {"optimizer", memory.optimizer},
                      {"checkpoint", memory.checkpoint},
                      {"gradients", gradients},
                      {"activations", ledger_.peak_bytes() - gradients - temporaries},
                      {"temporaries", temporaries}};
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
    return recipe_.training.saves_between_steps() ? model_.trainable_parameters() * kFloatBytes + plan_.memory.optimizer
                                                  : 0;
  }

  // Returns what is kept from the forward pass to the backward pass.
  Amount micro_batch() {
    const Amount gradients = ledger_.gradient_bytes(), before = ledger_.live_bytes();
    ledger_.enter("forward");
    const Value output = forward(ledger_, model_, batch_, /*training=*/true, plan_.checkpointing);
    if (plan_.memory.kept.empty()) {
      note_kept();
      plan_.memory.outputs = ledger_.output_bytes();
    }
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
      (which == Part::Adapter     ? plan_.flops.adapter
       : which == Part::Attention ? plan_.flops.attention
                                  : plan_.flops.linear) += sum;
      if (which == Part::Head) plan_.flops.head = sum;
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
  const TrainedModel& model_;
  Batch batch_;
  Plan plan_;
  Ledger ledger_;
};

}  // namespace

Plan make_plan(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, std::vector<ExpertLoad> loads) {
  return make_plan(recipe, TrainedModel(recipe, resolved, std::move(loads)));
}

Plan make_plan(const recipe::Recipe& recipe, const TrainedModel& model) { return StepPlanner(recipe, model).run(); }

Json to_json(const Plan& plan, std::optional<double> seconds) {
  const Plan::Memory& memory = plan.memory;
  Json kinds = Json::object(), at_peak = Json::object(), kept = Json::object(), phases = Json::object();
  for (const auto& [phase, bytes] : memory.phases) phases[phase] = whole(bytes);
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
            {"attention", whole(plan.flops.attention)},
            {"head", whole(plan.flops.head)}}},
          {"memory_bytes",
           {{"weights", whole(memory.weights)},
            {"trained_weights", whole(memory.trained_weights)},
            {"gradients", whole(memory.gradients)},
            {"optimizer", whole(memory.optimizer)},
            {"checkpoint", whole(memory.checkpoint)},
            {"activations", whole(memory.activations)},
            {"outputs", whole(memory.outputs)},
            {"logits", whole(memory.logits)},
            {"peak", whole(memory.peak)}}},
          {"activations_by_part", std::move(kept)},
          {"peak_phase", memory.peak_phase},
          {"peak_by_phase", std::move(phases)},
          {"at_peak", std::move(at_peak)},
          {"assumes", plan.assumes},
          {"activation_checkpointing", config::Codec<recipe::Checkpointing>::write(plan.checkpointing)},
          {"master_copies", plan.master_copies},
          {"batch_size", plan.batch_size},
          {"gradient_accumulation_steps", plan.gradient_accumulation_steps},
          {"max_length", plan.max_length},
          {"seconds_per_step", seconds ? Json(*seconds) : Json(nullptr)}};
}

}  // namespace lathe::cost
