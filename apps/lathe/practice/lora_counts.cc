// Question 4a: parameters and operations of LoRA on a Transformer block's attention.
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <memory>

#include "lathe/cost/closed_forms.h"
#include "lathe/nn/attention.h"
#include "lathe/nn/lora.h"
#include "practice/lora.h"
#include "practice/measure.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr int64_t kHiddenSize = 1024, kLoraRank = 8, kLoraTokens = 64;

// One head of width 1024, as the question has it, without biases; LoRA on query and value.
struct Attention {
  nn::Linear query = make_linear(kHiddenSize, kHiddenSize, "4a.query"),
             key = make_linear(kHiddenSize, kHiddenSize, "4a.key"),
             value = make_linear(kHiddenSize, kHiddenSize, "4a.value"),
             output = make_linear(kHiddenSize, kHiddenSize, "4a.output");
  nn::LoRALinear lora_query{nullptr}, lora_value{nullptr};

  void adapt() {
    lora_query = make_lora(query.ptr(), nn::LoRALinearOptions(kLoraRank, 16), "4a.lora_query", /*start_at_zero=*/false);
    lora_value = make_lora(value.ptr(), nn::LoRALinearOptions(kLoraRank, 16), "4a.lora_value", /*start_at_zero=*/false);
  }
  // The four projections of x; what lies between them does not change.
  Tensor forward(const Tensor& x) {
    nn::LinearBase& q = lora_query.is_empty() ? static_cast<nn::LinearBase&>(*query) : *lora_query;
    nn::LinearBase& v = lora_value.is_empty() ? static_cast<nn::LinearBase&>(*value) : *lora_value;
    const Tensor qkv = at::cat({q.forward(x), key->forward(x), v.forward(x)}, 1);
    const auto rows = std::make_shared<const std::vector<int64_t>>(std::vector<int64_t>{0, x.size(0)});
    return output->forward(nn::self_attention(qkv, rows, {.num_heads = 1}));
  }
};

Amount count_parameters(const std::vector<const torch::nn::Module*>& modules, bool trainable_only) {
  Amount count = 0;
  for (const torch::nn::Module* module : modules) {
    for (const Tensor& parameter : module->parameters())
      if (parameter.requires_grad() || !trainable_only) count += static_cast<Amount>(parameter.numel());
  }
  return count;
}

struct DerivedCounts {
  Amount base, lora, share, projection, added, added_share, attention;
};

DerivedCounts derive_counts(Working& working) {
  const Amount h = kHiddenSize, r = kLoraRank, t = kLoraTokens;
  working.say(
      "The attention of the block has four projections of 1024 by 1024: query, key, value and output; the number of "
      "heads does not change that. (A usual block's MLP of width 4 x 1024 would add twice as many; biases and norms "
      "are left out.)");
  DerivedCounts derived{};
  derived.base = working.derive("Parameters of the projections", filled("4 x {}^2", {h}), 4 * h * h);
  derived.lora = working.derive("LoRA: A [8, 1024] and B [1024, 8] for query and for value",
                                filled("2 x ({} x {} + {} x {})", {h, r, r, h}), 2 * cost::lora_parameters(h, h, r));
  derived.share = working.derive("... as a share of the projections",
                                 filled("{} / {} = 1 / {}", {derived.lora, derived.base, derived.base / derived.lora}),
                                 derived.lora / derived.base, Unit::Share);
  derived.projection = working.derive("FLOPs that one adapted projection takes anyway, per token",
                                      filled("2 x {}^2", {h}), cost::full_finetuning_flops(h, h).forward, Unit::Flops);
  derived.added = working.derive("FLOPs that its adapter adds to the forward pass, per token: x A' and that times B'",
                                 filled("2 r (in + out) = 2 x {} x ({} + {})", {r, h, h}),
                                 cost::lora_forward_flops(h, h, r), Unit::Flops);
  derived.added_share =
      working.derive("... as a share of that projection", filled("{} / {}", {derived.added, derived.projection}),
                     derived.added / derived.projection, Unit::Share);
  working.say(
      "Merged, W + scaling B A takes the place of W: the same shape, the same FLOPs, no increase at all. So a merged "
      "model serves at the old cost, and an unmerged one can change its adapter per request.");
  derived.attention =
      working.derive("Forward FLOPs of the run, 64 tokens, without adapters: projections, scores and values",
                     filled("8 x {} x {}^2 + 4 x {}^2 x {}", {t, h, t, h}),
                     cost::attention_projection_flops(t, h) + cost::attention_score_flops(t, h), Unit::Flops);
  return derived;
}

void measure_counts(Working& working, const DerivedCounts& derived) {
  const at::NoGradGuard no_grad;
  Attention block;
  const Tensor x = drawn({kLoraTokens, kHiddenSize}, "4a.x");
  const Amount base =
      count_parameters({block.query.get(), block.key.get(), block.value.get(), block.output.get()}, false);
  working.claim_equal("Parameters of the four modules", derived.base, base);
  const auto projection = static_cast<Amount>(counted_flops([&] { block.query->forward(x); }));
  working.claim_equal("Operations of one projection, 64 tokens", kLoraTokens * derived.projection, projection,
                      Unit::Flops);
  const auto flops = [&] { return static_cast<Amount>(counted_flops([&] { block.forward(x); })); };
  const Amount without = flops();
  working.claim_equal("Operations without adapters", derived.attention, without, Unit::Flops);
  block.adapt();
  const Amount trainable = count_parameters({block.lora_query.get(), block.lora_value.get()}, true),
               added = flops() - without;
  working.claim_equal("Trainable parameters of the two adapted modules", derived.lora, trainable);
  working.claim_equal("... as a share of those counted in the projections", derived.share, trainable / base,
                      Unit::Share);
  working.claim_equal("Operations that the adapters add, 64 tokens, 2 projections", 2 * kLoraTokens * derived.added,
                      added, Unit::Flops);
  working.claim_equal("... as a share of those counted in the two projections", derived.added_share,
                      added / (2 * projection), Unit::Share);
  const Tensor unmerged = block.forward(x);
  const double apart_seconds = seconds_of([&] { block.forward(x); });
  block.lora_query->merge();
  block.lora_value->merge();
  working.claim_equal("Operations after merging: those without adapters", derived.attention, flops(), Unit::Flops);
  // 1024 products of each sum are rounded to 24 bits on both sides.
  const double limit = 1024 * 0x1p-24, difference = relative_difference(block.forward(x), unmerged);
  working.claim("Merged and unmerged compute the same", "at most " + short_number(limit) + " apart",
                short_number(difference), difference <= limit);
  working.answer.tables.push_back({"Forward pass of 64 tokens (shown, not judged)",
                                   "",
                                   {"adapters", "time"},
                                   {{"beside the projections", short_number(1000 * apart_seconds) + " ms"},
                                    {"merged", short_number(1000 * seconds_of([&] { block.forward(x); })) + " ms"}}});
}

Answer answer_lora_counts(const Settings& settings) {
  Working working(settings);
  const DerivedCounts derived = derive_counts(working);
  working.answer.in_short = amount_text(derived.base) + " parameters; LoRA trains " + amount_text(derived.lora) +
                            " and adds " + amount_text(derived.added, Unit::Flops) +
                            " per token and adapted projection, 1/" + amount_text(derived.projection / derived.added) +
                            " of that projection's; nothing once merged.";
  measure_counts(working, derived);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion4a;
const Question kQuestion4a = {"4a", "Counting LoRA",
                              "A Transformer block has hidden size 1024 and one attention head. How many parameters "
                              "have its projections for query, key, value and output? How many does LoRA of rank 8 on "
                              "query and value train, and by how much does it increase the FLOPs of the forward pass?",
                              answer_lora_counts};

}  // namespace lathe::app::practice
