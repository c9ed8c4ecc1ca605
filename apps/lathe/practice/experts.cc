// Question 3a: what a mixture of experts is.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <utility>

#include "lathe/base/random.h"
#include "lathe/cost/closed_forms.h"
#include "lathe/cost/parameters.h"
#include "lathe/models/moe_block.h"
#include "lathe/nn/moe.h"
#include "practice/expert_diagram.h"
#include "practice/measure.h"
#include "practice/published.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr cost::ExpertSizes kExperts{.width = 32, .hidden_size = 64, .num_experts = 8, .top_k = 2};
constexpr int64_t kExpertTokens = 64;

nn::MoELayer make_experts(const cost::ExpertSizes& sizes, at::ScalarType dtype) {
  const auto whole = [](double size) { return static_cast<int64_t>(size); };
  nn::ExpertBank bank(nn::ExpertBankOptions(whole(sizes.num_experts), whole(sizes.width), whole(sizes.hidden_size)));
  nn::TopKRouter router(whole(sizes.width), whole(sizes.num_experts), whole(sizes.top_k));
  nn::MoELayer layer(router.ptr(), bank.ptr());
  router->initialise(make_key(name_key("3a.router")), 0.5);
  bank->initialise(make_key(name_key("3a.experts")));
  for (Tensor& parameter : layer->parameters()) parameter.set_data(parameter.to(dtype));
  return layer;
}

// Every expert over every token, weighted by gates [T, E] that are 0 where an expert is not chosen.
Tensor dense_mixture(const nn::ExpertBankImpl& bank, const Tensor& x_TD, const nn::Routing& routing) {
  const int64_t hidden = bank.options.hidden_features();
  const Tensor gates_TE = at::zeros({x_TD.size(0), bank.num_experts()}, x_TD.options());
  gates_TE.index_put_({routing.token_A, routing.expert_A}, routing.gate_A.detach());
  Tensor y = at::zeros(x_TD.sizes(), x_TD.options());
  for (int64_t e = 0; e < bank.num_experts(); ++e) {
    const Tensor h = x_TD.matmul(bank.up_weight[e].t());
    const Tensor act = at::silu(h.narrow(1, 0, hidden)) * h.narrow(1, hidden, hidden);
    y = y + gates_TE.narrow(1, e, 1) * act.matmul(bank.down_weight[e].t());
  }
  return y;
}

std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (const int64_t size : tensor.sizes()) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

Table stages(const Tensor& x, const nn::Routing& routing, const nn::ExpertGroups& groups, const Tensor& y) {
  Table table{"The layer's stages: 64 tokens of width 32, 8 experts of hidden width 64, top-2",
              "",
              {"stage", "tensor", "shape"},
              {}};
  table.rows = {{"input", "x", shape_text(x)},
                {"router", "scores z = x W'", shape_text(routing.logits_TE)},
                {"softmax", "probabilities", shape_text(routing.scores_TE)},
                {"top-k", "chosen experts of all tokens, one after another", shape_text(routing.expert_A)},
                {"renormalised", "gates", shape_text(routing.gate_A)},
                {"dispatch", "tokens sorted by expert", shape_text(groups.token_A)},
                {"weighted combination", "y", shape_text(y)}};
  for (size_t e = 0; e + 1 < groups.offsets.size(); ++e)
    table.rows.insert(table.rows.end() - 1, {"expert " + std::to_string(e + 1), "its tokens",
                                             "[" + std::to_string(groups.offsets[e + 1] - groups.offsets[e]) + ", " +
                                                 std::to_string(x.size(1)) + "]"});
  return table;
}

struct DerivedExperts {
  Amount total, active, per_token, router, of_one_token;
  Amount mixtral_experts, mixtral_total, mixtral_active;
};

void derive_mixtral(Working& working, DerivedExperts& derived) {
  const arch::DecoderArch arch = mixtral_8x7b();
  const auto layers = static_cast<Amount>(arch.num_hidden_layers), vocabulary = static_cast<Amount>(arch.vocab_size);
  const auto queries = static_cast<Amount>(arch.query_size()), keys = static_cast<Amount>(arch.key_value_size());
  const cost::ExpertSizes m = {static_cast<Amount>(arch.hidden_size), static_cast<Amount>(arch.moe->expert_size),
                               static_cast<Amount>(arch.moe->num_experts), static_cast<Amount>(arch.moe->top_k)};
  derived.mixtral_experts =
      working.derive("Mixtral-8x7B, E = 8, k = 2, 32 blocks: the experts and routers of all",
                     filled("{} x ({} x 3 x {} x {} + {} x {})",
                            {layers, m.num_experts, m.width, m.hidden_size, m.width, m.num_experts}),
                     layers * cost::expert_layer_parameters(m));
  const Amount rest = working.derive(
      "... all the rest: embeddings and head, attention of 32 query and 8 key and value heads, norms",
      filled("2 x {} x {} + {} x (2 x {} x {} + 2 x {} x {} + 2 x {}) + {}",
             {vocabulary, m.width, layers, m.width, queries, m.width, keys, m.width, m.width}),
      2 * vocabulary * m.width + layers * (2 * m.width * queries + 2 * m.width * keys + 2 * m.width) + m.width);
  derived.mixtral_total = working.derive("... parameters in total", filled("{} + {}", {derived.mixtral_experts, rest}),
                                         derived.mixtral_experts + rest);
  const Amount met = layers * cost::active_expert_parameters(m);
  derived.mixtral_active =
      working.derive("... active for one token: routers, two experts of eight, and all the rest",
                     filled("{} x ({} x 3 x {} x {} + {} x {}) + {}",
                            {layers, m.top_k, m.width, m.hidden_size, m.width, m.num_experts, rest}),
                     met + rest);
}

DerivedExperts derive_experts(Working& working) {
  const cost::ExpertSizes& s = kExperts;
  working.say(
      "A mixture of experts puts E small networks, the experts, in the place of one: in a Transformer block in the "
      "place of the feed-forward network, after attention and norm, inside of the residual. A router, also called "
      "gate, is a linear layer that scores each token for each expert. The top-k scores choose k experts (k is 1 or 2 "
      "of 8, or 8 of 128); only these compute. Their outputs are combined, weighted by the softmax of the scores. Load "
      "balancing (an auxiliary loss, or a bias on the choice) sees to it that all experts are used; question 3b shows "
      "what happens without.");
  working.say(
      "The point: parameters and work are separate. All experts count as capacity, but a token passes k of them only. "
      "Total parameters grow with E; the active ones, and with them the FLOPs per token, do not. What it costs: memory "
      "for all experts, uneven loads, communication when experts live on several devices.");
  DerivedExperts derived{};
  derived.total =
      working.derive("The run's layer, D = 32, F = 64, E = 8, k = 2, SwiGLU: parameters in total, experts and router",
                     filled("E (3 D F) + D E = {} x 3 x {} x {} + {} x {}",
                            {s.num_experts, s.width, s.hidden_size, s.width, s.num_experts}),
                     cost::expert_layer_parameters(s));
  derived.active =
      working.derive("... active for one token",
                     filled("{} x 3 x {} x {} + {} x {}", {s.top_k, s.width, s.hidden_size, s.width, s.num_experts}),
                     cost::active_expert_parameters(s));
  derived.of_one_token =
      working.derive("... of them in experts", filled("{} x 3 x {} x {}", {s.top_k, s.width, s.hidden_size}),
                     cost::active_expert_parameters(s) - s.width * s.num_experts);
  derived.per_token = working.derive(
      "FLOPs of the chosen experts, per token: those of a dense SwiGLU network of hidden width k F",
      filled("2 x {} x 3 x {} x {}", {s.top_k, s.width, s.hidden_size}), cost::chosen_experts_flops(s), Unit::Flops);
  derived.router =
      working.derive("FLOPs of the router, per token", filled("2 D E = 2 x {} x {}", {s.width, s.num_experts}),
                     cost::router_flops(s), Unit::Flops);
  derive_mixtral(working, derived);
  return derived;
}

Amount counted_parameters(const torch::nn::Module& module) {
  Amount count = 0;
  for (const Tensor& parameter : module.parameters()) count += static_cast<Amount>(parameter.numel());
  return count;
}

// Elements of the experts that a single token gives a gradient.
Amount touched_by_one_token(nn::MoELayerImpl& layer, const Tensor& x) {
  layer.forward(x.narrow(0, 0, 1)).square().sum().backward();
  Amount touched = 0;
  for (const Tensor& parameter : layer.experts->parameters())
    touched += static_cast<Amount>(parameter.grad().count_nonzero().item<int64_t>());
  return touched;
}

void measure_layer(Working& working, const DerivedExperts& derived) {
  nn::MoELayer layer = make_experts(kExperts, at::kDouble);
  const Tensor x = drawn({kExpertTokens, 32}, "3a.x", at::kDouble);
  const nn::Routing routing = layer->router->route(x, {});
  const Tensor y = layer->forward(x);
  working.answer.tables.push_back(stages(x, routing, nn::ExpertGroups::of(routing), y));
  const auto& bank = dynamic_cast<const nn::ExpertBankImpl&>(*layer->experts);
  const double difference = relative_difference(y, dense_mixture(bank, x, routing));
  working.claim(
      "The layer computes the gated sum of the chosen experts (float64, every expert on every token as reference)",
      "at most 1e-12 apart", short_number(difference), difference <= 1e-12);
  const Tensor sums = at::zeros({kExpertTokens}, x.options()).index_add(0, routing.token_A, routing.gate_A.detach());
  const double off = (sums - 1).abs().max().item<double>();
  working.claim("Each token's gates sum to 1", "at most 1e-12 off", short_number(off), off <= 1e-12);
  working.claim_equal("Parameters of the module", derived.total, counted_parameters(*layer));
  const Amount touched = touched_by_one_token(*layer, x);
  working.claim_equal("Parameters of experts that one token reaches, by its gradients", derived.of_one_token, touched);
  working.claim_equal("... and with the router, which scores every expert", derived.active,
                      touched + counted_parameters(*layer->router));
}

void measure_flops(Working& working, const DerivedExperts& derived) {
  const at::NoGradGuard no_grad;
  const Tensor x = drawn({kExpertTokens, 32}, "3a.x");
  nn::MoELayer layer = make_experts(kExperts, at::kFloat);
  const auto per_token = [&](const std::function<void()>& run) {
    return static_cast<Amount>(counted_flops(run)) / kExpertTokens;
  };
  working.claim_equal("Operations per token, router and two experts of eight", derived.router + derived.per_token,
                      per_token([&] { layer->forward(x); }), Unit::Flops);
  nn::GatedMLP dense(32, 2 * 64);
  for (Tensor& parameter : dense->parameters()) parameter.set_data(drawn(parameter.sizes(), "3a.dense"));
  working.claim_equal("Operations per token of a dense network of the same active size, hidden width 2 x 64",
                      derived.per_token, per_token([&] { dense->forward(x); }), Unit::Flops);

  report::Chart parameters{.id = "parameters",
                           .title = "Parameters against the number of experts",
                           .note = "D = 32, F = 64, top-2.",
                           .y_label = "parameters",
                           .x_label = "experts",
                           .from_zero = true};
  report::Chart flops{.id = "flops",
                      .title = "FLOPs per token against the number of experts",
                      .note = "Counted; the router grows, the experts' work does not.",
                      .y_label = "FLOPs",
                      .x_label = "experts",
                      .from_zero = true};
  using Kind = report::Curve::Kind;
  working.answer.names = {"total", "active", "with the router", "experts only"};
  for (size_t i = 0; i < 4; ++i)
    (i < 2 ? parameters : flops).curves.push_back({.label = working.answer.names[i], .run = i, .kind = Kind::Points});
  for (const double experts : {2.0, 4.0, 8.0, 16.0, 32.0}) {
    cost::ExpertSizes sizes = kExperts;
    sizes.num_experts = experts;
    nn::MoELayer more = make_experts(sizes, at::kFloat);
    const Amount counted = per_token([&] { more->forward(x); });
    const Amount values[] = {counted_parameters(*more), cost::active_expert_parameters(sizes), counted,
                             counted - cost::router_flops(sizes)};
    for (size_t i = 0; i < 4; ++i) {
      report::Series& series = (i < 2 ? parameters.curves[i] : flops.curves[i - 2]).series;
      series.x.push_back(experts);
      series.y.push_back(values[i]);
    }
    if (experts == 32)
      working.claim_equal("With 32 experts the chosen ones take no more", derived.per_token, values[3], Unit::Flops);
  }
  working.answer.charts = {std::move(parameters), std::move(flops)};
}

void measure_mixtral(Working& working, const DerivedExperts& derived) {
  const arch::DecoderArch mixtral = mixtral_8x7b();
  const cost::ParameterCount count = cost::count_parameters(mixtral);
  const nn::MoELayer block = models::build_moe_block(*mixtral.moe);
  const auto layers = static_cast<Amount>(mixtral.num_hidden_layers);
  working.claim_equal("Mixtral's experts and routers as Lathe builds them: 32 blocks, skeletons without storage",
                      derived.mixtral_experts, layers * counted_parameters(*block));
  working.claim_equal("Mixtral in total, over the names and shapes of its checkpoint's tensors", derived.mixtral_total,
                      count.total);
  const auto experts = static_cast<Amount>(mixtral.moe->num_experts), met = static_cast<Amount>(mixtral.moe->top_k);
  working.claim_equal("... without the six of eight experts in each block that a token does not meet, as built",
                      derived.mixtral_active,
                      count.total - layers * (1 - met / experts) * counted_parameters(*block->experts));
  working.claim_equal("... active for one token as the planner has it", derived.mixtral_active, count.active);
}

Answer answer_experts(const Settings& settings) {
  Working working(settings);
  working.answer.in_short =
      "E networks in the place of a Transformer block's feed-forward network, of which a router chooses k for each "
      "token. Parameters grow with E, the FLOPs of a token with k.";
  working.answer.diagrams.push_back(expert_diagram());
  const DerivedExperts derived = derive_experts(working);
  measure_layer(working, derived);
  measure_flops(working, derived);
  measure_mixtral(working, derived);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion3a;
const Question kQuestion3a = {"3a", "What a mixture of experts is",
                              "What is a mixture-of-experts layer, where does it stand in a Transformer, and why can "
                              "it have many more parameters at the same FLOPs per token? Draw it and name its parts.",
                              answer_experts};

}  // namespace lathe::app::practice
