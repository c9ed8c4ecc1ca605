// Question 4e: LoRA's operations against full fine-tuning.
#include <ATen/ops/tanh.h>

#include <memory>

#include "lathe/cost/closed_forms.h"
#include "lathe/nn/attention.h"
#include "lathe/nn/checkpoint.h"
#include "practice/lora.h"
#include "practice/published.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr int64_t kFlopTokens = 32, kFlopRank = 8;

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

void derive_ratio(Working& working) {
  const Amount n = 4096, r = kFlopRank;
  const cost::TokenFlops full = cost::full_finetuning_flops(n, n), lora = cost::lora_finetuning_flops(n, n, r);
  working.say(
      "A layer y = W x with W [N, N], per token. Full fine-tuning makes three products with W's size: y = W x forward, "
      "dX = W' g for the layers before, dW = g x' for the weight.");
  working.derive("Full fine-tuning, N = 4096", filled("2 N^2 + 2 N^2 + 2 N^2 = 6 x {}^2", {n}), full.total(),
                 Unit::Flops);
  working.say(
      "LoRA never needs dW: W is frozen. It does need dX, through W as well as through the adapter. The adapter's own "
      "products are small: forward A x and B (A x), 4 N r; backward B' g, the gradients of A and B, and what goes on "
      "to dX, 8 N r.");
  working.derive("LoRA, r = 8", filled("2 N^2 + 2 N^2 + 12 N r = 4 x {}^2 + 12 x {} x {}", {n, n, r}), lora.total(),
                 Unit::Flops);
  working.derive("The ratio, 2/3 + 2 r / N, goes to 2/3", filled("2/3 + 2 x {} / {}", {r, n}),
                 lora.total() / full.total());
  working.say(
      "So LoRA saves a third of the FLOPs of the linear layers, no more: its great saving is memory, the gradients and "
      "the optimizer state of W.");
}

// The run's: where each product runs again, and with attention between the layers.
struct DerivedExceptions {
  Amount llama, recomputed, attention;
};

constexpr int64_t kExceptionWidth = 256, kExceptionTokens = 128;

// Where it is another number: shares of what a whole model spends.
DerivedExceptions derive_exceptions(Working& working) {
  const PublishedModel llama = llama_2_7b();
  const auto hidden = static_cast<Amount>(llama.arch.hidden_size),
             layers = static_cast<Amount>(llama.arch.num_hidden_layers);
  const auto mlp = static_cast<Amount>(llama.arch.intermediate_size),
             vocabulary = static_cast<Amount>(llama.arch.vocab_size);
  DerivedExceptions derived{};
  derived.llama = working.derive(
      "Llama-2-7B's parameters in products, of attention, MLPs and head",
      filled("{} x (4 x {}^2 + 3 x {} x {}) + {} x {}", {layers, hidden, hidden, mlp, hidden, vocabulary}),
      layers * (4 * hidden * hidden + 3 * hidden * mlp) + hidden * vocabulary);
  const Amount parameters = derived.llama;
  const Amount scores = 12 * static_cast<Amount>(llama.arch.num_hidden_layers * llama.arch.query_size()) * 4096;
  working.derive(
      "Scores and weighted values have no weights to freeze. At s = 4096 tokens: N these parameters, A = 12 L s h "
      "FLOPs per token for attention",
      filled("(4 N + A) / (6 N + A), N = {}, A = {}", {parameters, scores}),
      (4 * parameters + scores) / (6 * parameters + scores));
  working.derive("... with the causal mask, which halves them", "(4 N + A / 2) / (6 N + A / 2)",
                 (4 * parameters + scores / 2) / (6 * parameters + scores / 2));
  working.derive("With full recomputation one more forward pass on both sides", "(2 + 2 + 2) / (2 + 2 + 2 + 2)",
                 6.0 / 8.0);
  const Amount n = kExceptionWidth, s = kExceptionTokens, r = kFlopRank;
  const cost::TokenFlops full = cost::full_finetuning_flops(n, n), lora = cost::lora_finetuning_flops(n, n, r);
  derived.recomputed =
      working.derive("... of a layer of N = 256 with an adapter, whose two products run again as well",
                     filled("(6 N^2 + 16 N r) / (8 N^2) = 3/4 + 2 x {} / {}", {r, n}),
                     (lora.total() + lora.forward + cost::lora_forward_flops(n, n, r)) / (full.total() + full.forward));
  const Amount scores_flops = 3.5 * cost::attention_score_flops(s, n), projections = 4 * s;
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
  nn::LoRALinear adapted = make_lora(frozen.ptr(), nn::LoRALinearOptions(kFlopRank, 16), "4e.again_lora");
  const Tensor x = drawn({kExceptionTokens, n}, "4e.tokens").requires_grad_();
  const auto again = [&](nn::LinearBase& layer) {
    return static_cast<Amount>(counted_flops([&] {
      // tanh needs its output: the layer's product has to run again.
      nn::checkpoint([&layer](const std::vector<Tensor>& in) { return at::tanh(layer.forward(in[0])); }, {x})
          .backward(drawn(x.sizes(), "4e.g"));
    }));
  };
  const PublishedModel llama = llama_2_7b();
  working.claim_equal("Llama-2-7B's parameters in products, as the planner counts them", derived.llama,
                      llama.of_kind("attention") + llama.of_kind("mlp") + llama.of_kind("head"));
  working.claim_close("Everything computed again, N = 256: ratio of the operations counted", derived.recomputed,
                      again(*adapted) / again(*dense), 1e-12);
  working.claim_close("Attention with its projections frozen against trained: ratio of the operations counted",
                      derived.attention, attention_flops(false) / attention_flops(true), 1e-12);
}

void measure_ratio(Working& working) {
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
  for (const int64_t n : {256, 512, 1024, 2048, 4096}) {
    nn::Linear dense = make_linear(n, n, "4e.dense"), frozen = make_linear(n, n, "4e.dense");
    nn::LoRALinear adapted = make_lora(frozen.ptr(), nn::LoRALinearOptions(kFlopRank, 16), "4e.lora");
    const LayerRun full = run_layer(*dense, n, true), lora = run_layer(*adapted, n, true);
    const auto width = static_cast<Amount>(n);
    const std::string name = "N = " + amount_text(width);
    const Amount expected = working.derive("The ratio at " + name, filled("2/3 + 2 x {} / {}", {kFlopRank, width}),
                                           cost::lora_finetuning_flops(width, width, kFlopRank).total() /
                                               cost::full_finetuning_flops(width, width).total());
    working.claim_close(name + ": ratio of the operations counted", expected, lora.flops / full.flops, 1e-12);
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
  derive_ratio(working);
  measure_ratio(working);
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
