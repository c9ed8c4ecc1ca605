// Question 4e: LoRA's operations against full fine-tuning.
#include <ATen/ops/tanh.h>

#include <memory>

#include "lathe/cost/closed_forms.h"
#include "lathe/cost/ops.h"
#include "lathe/nn/attention.h"
#include "lathe/nn/checkpoint.h"
#include "practice/lora.h"
#include "practice/published.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr int64_t kFlopTokens = 32, kFlopRank = 8;
const std::vector<int64_t> kFlopWidths = {256, 512, 1024, 2048, 4096};

struct LayerRun {
  Amount flops = 0;
  double seconds = 0;
};

LayerRun run_layer(nn::LinearBase& layer, int64_t width, bool input_gradient) {
  const Tensor x = drawn({kFlopTokens, width}, "4e.x").requires_grad_(input_gradient),
               grad = drawn({kFlopTokens, width}, "4e.g");
  const auto step = [&] { layer.forward(x).backward(grad); };
  return {static_cast<Amount>(counted_flops(step)) / kFlopTokens, seconds_of(step)};
}

// At the largest N.
struct DerivedRatio {
  Amount full, lora;
};

DerivedRatio derive_ratio(Working& working) {
  const auto n = static_cast<Amount>(kFlopWidths.back()), r = static_cast<Amount>(kFlopRank);
  const cost::TokenFlops full = cost::full_finetuning_flops(n, n), lora = cost::lora_finetuning_flops(n, n, r);
  working.say(
      "A layer y = W x with W [N, N], per token. Full fine-tuning makes three products with W's size: y = W x forward, "
      "dX = W' g for the layers before, dW = g x' for the weight.");
  DerivedRatio derived{};
  derived.full = working.derive("Full fine-tuning, N = 4096", filled("2 N^2 + 2 N^2 + 2 N^2 = 6 x {}^2", {n}),
                                full.total(), Unit::Flops);
  working.say(
      "LoRA never needs dW: W is frozen. It does need dX, through W as well as through the adapter. The adapter's own "
      "products are small: forward A x and B (A x), 4 N r; backward B' g, the gradients of A and B, and what goes on "
      "to dX, 8 N r.");
  derived.lora = working.derive("LoRA, r = 8", filled("2 N^2 + 2 N^2 + 12 N r = 4 x {}^2 + 12 x {} x {}", {n, n, r}),
                                lora.total(), Unit::Flops);
  working.say("The ratio is 2/3 + 2 r / N, which goes to 2/3; the table has it for five widths.");
  working.say(
      "So LoRA saves a third of the FLOPs of the linear layers, no more: its great saving is memory, the gradients and "
      "the optimizer state of W.");
  return derived;
}

// The run's: where each product runs again, and with attention between the layers.
struct DerivedExceptions {
  Amount llama, llama_ratio, llama_causal, frozen_again, recomputed, attention;
};

constexpr int64_t kExceptionWidth = 256, kExceptionTokens = 128;
constexpr Amount kLlamaTokens = 4096;

// Llama-2-7B's layers and head as the planner follows them, embeddings and adapters aside: FLOPs per token.
struct PlannedDecoder {
  Amount forward = 0, linear = 0, attention_forward = 0;
};

PlannedDecoder plan_llama(bool trains) {
  const arch::DecoderArch arch = llama_2_7b();
  const auto hidden = static_cast<Amount>(arch.hidden_size), mlp = static_cast<Amount>(arch.intermediate_size);
  const auto queries = static_cast<Amount>(arch.query_size()), keys = static_cast<Amount>(arch.key_value_size());
  const auto layer = [trains](const std::string& path, Amount in_features, Amount out_features) {
    return cost::LinearCost{
        .path = path, .in_features = in_features, .out_features = out_features, .bias = false, .trains = trains};
  };
  cost::Ledger ledger;
  cost::Value x = ledger.tensor(kLlamaTokens, hidden);
  ledger.record(x, {}, /*trains=*/true, [](const cost::Buffer&) { return std::vector<cost::Buffer>(); });
  for (int64_t i = 0; i < arch.num_hidden_layers; ++i) {
    const std::string at = std::to_string(i);
    const cost::LinearCost q = layer(at + ".q", hidden, queries), k = layer(at + ".k", hidden, keys),
                           v = layer(at + ".v", hidden, keys), gate = layer(at + ".gate", hidden, mlp),
                           up = layer(at + ".up", hidden, mlp);
    const cost::Value qkv = cost::joint_forward(ledger, x, {&q, &k, &v});
    const auto heads = static_cast<Amount>(arch.num_attention_heads);
    const cost::Value attended = cost::attention(ledger, {&qkv}, {1, kLlamaTokens, kLlamaTokens, heads, queries});
    const cost::Value u = cost::linear(ledger, attended, layer(at + ".o", queries, hidden));
    const cost::Value h = cost::swiglu(ledger, cost::joint_forward(ledger, u, {&gate, &up}));
    x = cost::linear(ledger, h, layer(at + ".down", mlp, hidden));
  }
  x = cost::linear(ledger, x, layer("head", hidden, static_cast<Amount>(arch.vocab_size)));
  ledger.backward(x, ledger.allocate(x.buffer->bytes()));
  const auto spent = [&](cost::Pass pass, cost::Part part) { return ledger.flops(pass, part) / kLlamaTokens; };
  const Amount forward = spent(cost::Pass::Forward, cost::Part::Linear);
  return {forward, forward + spent(cost::Pass::Backward, cost::Part::Linear),
          spent(cost::Pass::Forward, cost::Part::Attention)};
}

// Where it is another number: shares of what a whole model spends.
DerivedExceptions derive_exceptions(Working& working) {
  const arch::DecoderArch llama = llama_2_7b();
  const auto hidden = static_cast<Amount>(llama.hidden_size), layers = static_cast<Amount>(llama.num_hidden_layers);
  const auto mlp = static_cast<Amount>(llama.intermediate_size), vocabulary = static_cast<Amount>(llama.vocab_size);
  DerivedExceptions derived{};
  derived.llama = working.derive(
      "Llama-2-7B's parameters in products, of attention, MLPs and head",
      filled("{} x (4 x {}^2 + 3 x {} x {}) + {} x {}", {layers, hidden, hidden, mlp, hidden, vocabulary}),
      layers * (4 * hidden * hidden + 3 * hidden * mlp) + hidden * vocabulary);
  const Amount parameters = derived.llama;
  const auto width = static_cast<Amount>(llama.query_size());
  const Amount scores = layers * 3 * cost::attention_score_flops(kLlamaTokens, width) / kLlamaTokens;
  const cost::TokenFlops all = cost::full_finetuning_flops(parameters, 1);
  const auto ratio = [&](Amount attention) {
    return (all.forward + all.input_gradient + attention) / (all.total() + attention);
  };
  derived.llama_ratio = working.derive(
      filled(
          "Scores and weighted values have no weights to freeze. At s = {} tokens: N these parameters, A = 3 x 4 L s h "
          "FLOPs per token for attention",
          {kLlamaTokens}),
      filled("(4 N + A) / (6 N + A), N = {}, A = 12 x {} x {} x {}", {parameters, layers, kLlamaTokens, width}),
      ratio(scores));
  derived.llama_causal = working.derive("... with the causal mask, which halves them",
                                        filled("(4 N + A / 2) / (6 N + A / 2), A = {}", {scores}), ratio(scores / 2));
  derived.frozen_again =
      working.derive("With full recomputation one more forward pass on both sides", "(2 + 2 + 2) / (2 + 2 + 2 + 2)",
                     (2 * all.forward + all.input_gradient) / (all.forward + all.total()));
  const Amount n = kExceptionWidth, s = kExceptionTokens, r = kFlopRank;
  const cost::TokenFlops full = cost::full_finetuning_flops(n, n), lora = cost::lora_finetuning_flops(n, n, r);
  derived.recomputed =
      working.derive("... of a layer of N = 256 with an adapter, whose two products run again as well",
                     filled("(6 N^2 + 16 N r) / (8 N^2) = 3/4 + 2 x {} / {}", {r, n}),
                     (lora.total() + lora.forward + cost::lora_forward_flops(n, n, r)) / (full.total() + full.forward));
  // Two products forward, five backward: of the scores once more, and of two gradients for each.
  const Amount scores_flops = (2 + 5) / 2.0 * cost::attention_score_flops(s, n), projections = 4 * s;
  derived.attention = working.derive(
      "Four projections of N = 256 around the attention of 128 tokens, frozen against trained. Lathe's attention "
      "computes the scores again in its backward pass, 14 s N in place of 12",
      filled("(4 x 4 N^2 + A) / (4 x 6 N^2 + A), N = {}, A = 14 s N = 14 x {} x {}", {n, s, n}),
      (projections * (full.forward + full.input_gradient) + scores_flops) /
          (projections * full.total() + scores_flops));
  return derived;
}

// Forward and backward, the input's gradient included.
Amount attention_flops(bool trained) {
  const int64_t n = kExceptionWidth;
  nn::Linear joint = make_linear(n, 3 * n, "4e.qkv"), out = make_linear(n, n, "4e.out");
  for (const nn::Linear& linear : {joint, out}) linear->weight.set_requires_grad(trained);
  const Tensor x = drawn({kExceptionTokens, n}, "4e.tokens").requires_grad_();
  const auto rows = std::make_shared<const std::vector<int64_t>>(std::vector<int64_t>{0, kExceptionTokens});
  return static_cast<Amount>(counted_flops([&] {
    out->forward(nn::self_attention(joint->forward(x), rows, {.num_heads = 4})).backward(drawn(x.sizes(), "4e.g"));
  }));
}

void measure_exceptions(Working& working, const DerivedExceptions& derived) {
  const int64_t n = kExceptionWidth;
  nn::Linear dense = make_linear(n, n, "4e.again"), frozen = make_linear(n, n, "4e.again");
  nn::LoRALinear adapted = make_lora(frozen.ptr(), nn::LoRALinearOptions(kFlopRank, 16), "4e.again_lora");  // freezes
  const Tensor x = drawn({kExceptionTokens, n}, "4e.tokens").requires_grad_();
  const auto again = [&](nn::LinearBase& layer) {
    return static_cast<Amount>(counted_flops([&] {
      // tanh needs its output: the layer's product has to run again.
      nn::checkpoint([&layer](const std::vector<Tensor>& in) { return at::tanh(layer.forward(in[0])); }, {x})
          .backward(drawn(x.sizes(), "4e.g"));
    }));
  };
  const PlannedDecoder frozen_llama = plan_llama(false), trained_llama = plan_llama(true);
  // The textbook's backward pass of attention makes its products anew for two gradients; Lathe's also the scores.
  const auto ratio = [&](Amount share) {
    const Amount attention = 3 * share * trained_llama.attention_forward;
    return (frozen_llama.linear + attention) / (trained_llama.linear + attention);
  };
  working.claim_equal("Llama-2-7B's parameters in products: half the FLOPs of a token's forward pass in the planner",
                      derived.llama, trained_llama.forward / 2);
  working.claim_close("... frozen against trained at s = 4096, all layers followed by the planner", derived.llama_ratio,
                      ratio(1), 1e-12);
  working.claim_close("... with half of the attention", derived.llama_causal, ratio(0.5), 1e-12);
  working.claim_close("A frozen layer computed again against a trained one: ratio of the operations counted",
                      derived.frozen_again, again(*frozen) / again(*dense), 1e-12);
  working.claim_close("Everything computed again, N = 256: ratio of the operations counted", derived.recomputed,
                      again(*adapted) / again(*dense), 1e-12);
  working.claim_close("Attention with its projections frozen against trained: ratio of the operations counted",
                      derived.attention, attention_flops(false) / attention_flops(true), 1e-12);
}

void measure_ratio(Working& working, const DerivedRatio& derived) {
  Table table{"FLOPs per token, forward and backward, and time of 32 tokens (times are shown, not judged)",
              "",
              {"N", "full", "LoRA, r = 8", "ratio", "2/3 + 2 r / N", "time, full", "time, LoRA", "ratio of times"},
              {}};
  report::Chart chart{.id = "ratio",
                      .title = "LoRA over full fine-tuning",
                      .note = "One layer, r = 8, 32 tokens.",
                      .y_label = "ratio",
                      .x_label = "N"};
  working.answer.names = {"FLOPs", "time", "2/3"};
  using Kind = report::Curve::Kind;
  chart.curves = {{.label = "ratio", .run = 0, .kind = Kind::Points},
                  {.label = "ratio", .run = 1, .kind = Kind::Points},
                  {.label = "limit", .run = 2, .kind = Kind::Limit}};
  for (const int64_t n : kFlopWidths) {
    nn::Linear dense = make_linear(n, n, "4e.dense"), frozen = make_linear(n, n, "4e.dense");
    nn::LoRALinear adapted = make_lora(frozen.ptr(), nn::LoRALinearOptions(kFlopRank, 16), "4e.lora");
    const LayerRun full = run_layer(*dense, n, true), lora = run_layer(*adapted, n, true);
    const auto width = static_cast<Amount>(n);
    const std::string name = "N = " + amount_text(width);
    const Amount expected = working.derive("The ratio at " + name, filled("2/3 + 2 x {} / {}", {kFlopRank, width}),
                                           cost::lora_finetuning_flops(width, width, kFlopRank).total() /
                                               cost::full_finetuning_flops(width, width).total());
    working.claim_close(name + ": ratio of the operations counted", expected, lora.flops / full.flops, 1e-12);
    if (n == kFlopWidths.back()) {
      working.claim_equal("... operations per token of full fine-tuning", derived.full, full.flops, Unit::Flops);
      working.claim_equal("... and of LoRA", derived.lora, lora.flops, Unit::Flops);
    }
    table.rows.push_back({amount_text(width), amount_text(full.flops), amount_text(lora.flops),
                          short_number(lora.flops / full.flops), short_number(expected),
                          short_number(1000 * full.seconds) + " ms", short_number(1000 * lora.seconds) + " ms",
                          short_number(lora.seconds / full.seconds)});
    const double measures[] = {lora.flops / full.flops, lora.seconds / full.seconds, 2.0 / 3};
    for (size_t curve = 0; curve < 3; ++curve) {
      chart.curves[curve].series.x.push_back(static_cast<double>(n));
      chart.curves[curve].series.y.push_back(measures[curve]);
    }
  }
  working.answer.tables.push_back(std::move(table));
  working.answer.charts.push_back(std::move(chart));
}

void measure_first_layer(Working& working) {
  const Amount n = 1024, r = kFlopRank;
  const cost::TokenFlops full = cost::full_finetuning_flops(n, n, false),
                         lora = cost::lora_finetuning_flops(n, n, r, false);
  const Amount expected = working.derive(
      "The layer at which the backward pass ends, because nothing before it trains, needs no dX: N = 1024",
      filled("(2 N^2 + 10 N r) / (4 N^2) = 1/2 + 2.5 x {} / {}", {r, n}), lora.total() / full.total());
  nn::Linear dense = make_linear(1024, 1024, "4e.first"), frozen = make_linear(1024, 1024, "4e.first");
  nn::LoRALinear adapted = make_lora(frozen.ptr(), nn::LoRALinearOptions(kFlopRank, 16), "4e.first_lora");
  working.claim_close("Without dX, N = 1024: ratio of the operations counted", expected,
                      run_layer(*adapted, 1024, false).flops / run_layer(*dense, 1024, false).flops, 1e-12);
}

Answer answer_lora_flops(const Settings& settings) {
  Working working(settings);
  working.answer.in_short =
      "4 N^2 + 12 N r against 6 N^2: two thirds, as the products for the gradient of W fall away.";
  measure_ratio(working, derive_ratio(working));
  measure_first_layer(working);
  measure_exceptions(working, derive_exceptions(working));
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion4e;
const Question kQuestion4e = {"4e", "LoRA's FLOPs against full fine-tuning",
                              "A linear layer has a weight of N by N. How many FLOPs does a training step with LoRA "
                              "take per token, compared with full fine-tuning, when N is large against the rank?",
                              answer_lora_flops};

}  // namespace lathe::app::practice
