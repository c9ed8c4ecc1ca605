// Question 3b: why the router of a mixture of experts collapses, and what stops it.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <utility>

#include "lathe/base/random.h"
#include "lathe/nn/moe.h"
#include "practice/collapse.h"
#include "practice/measure.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

using Role = CollapseCase::Role;
using Measure = std::function<double(const CollapseSnapshot&)>;

constexpr int64_t kSeeds = 5;
constexpr int64_t kCollapsedDead = kCollapseExperts / 2, kMadeWidth = 16;

// Entropies of loads that are even but for dead experts: collapse is where half of them are, balance where none is.
struct Limits {
  Amount collapsed, balanced;
};

double entropy(const CollapseSnapshot& s) { return s.entropy; }
double dead(const CollapseSnapshot& s) { return static_cast<double>(s.dead); }
double loss(const CollapseSnapshot& s) { return s.loss; }
double information(const CollapseSnapshot& s) { return s.information; }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// A setting with its runs.
struct Row {
  CollapseCase which;
  std::vector<CollapseRun> runs;

  std::vector<double> all(const Measure& measure) const {
    std::vector<double> values;
    for (const CollapseRun& run : runs) values.push_back(measure(run.final));
    return values;
  }
  double middle(const Measure& measure) const { return median(all(measure)); }
  double least(const Measure& measure) const {
    const auto values = all(measure);
    return *std::min_element(values.begin(), values.end());
  }
  double most(const Measure& measure) const {
    const auto values = all(measure);
    return *std::max_element(values.begin(), values.end());
  }
};

// For what is near 1.
std::string printed_digits(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.6f", value);
  return text;
}

std::string measured(std::initializer_list<std::pair<const char*, double>> values) {
  std::string text;
  for (const auto& [what, value] : values)
    text += (text.empty() ? "" : ", ") + std::string(what) + " " + short_number(value);
  return text;
}

Claim collapses(const Row& row, const Limits& limits) {
  const double h = row.middle(entropy), d = row.middle(dead);
  return {row.which.name + ": collapses",
          "median entropy under " + short_number(limits.collapsed) + ", median dead at least 4 of 8",
          measured({{"entropy", h}, {"dead", d}}), h < limits.collapsed && d >= static_cast<double>(kCollapsedDead)};
}

// Every seed is balanced, and the median loss is below that of doing nothing.
Claim cures(const Row& row, const Row& nothing, const Limits& limits) {
  const double h = row.least(entropy), d = row.most(dead), l = row.middle(loss), before = nothing.middle(loss);
  return {row.which.name + ": cures",
          "least entropy over " + short_number(limits.balanced) + ", none dead, loss below " + short_number(before),
          measured({{"least entropy", h}, {"most dead", d}, {"loss", l}}), h > limits.balanced && d == 0 && l < before};
}

Claim balanced_but_worse(const Row& random, const std::vector<const Row*>& cured, const Limits& limits) {
  double worst = 0;
  for (const Row* row : cured) worst = std::max(worst, row->middle(loss));
  const double h = random.least(entropy), d = random.most(dead), l = random.middle(loss);
  return {
      random.which.name + ": balanced, but no better for it",
      "entropy over " + short_number(limits.balanced) + ", none dead, loss over every cure's " + short_number(worst),
      measured({{"least entropy", h}, {"most dead", d}, {"loss", l}}), h > limits.balanced && d == 0 && l > worst};
}

Claim specialises(const Row& cured) {
  const double i = cured.least(information);
  return {"Balance and specialisation differ: after " + cured.which.name + " the expert tells most of the cluster",
          "information over 0.5 of ln 8 in every run", measured({{"least information", i}}), i > 0.5};
}

// The median before the cure and at the end.
Claim recovers(const Row& row, const Limits& limits) {
  const auto before = [&](const Measure& measure) {
    std::vector<double> values;
    for (const CollapseRun& run : row.runs) {
      const auto last = std::find_if(run.history.begin(), run.history.end(),
                                     [](const CollapseSnapshot& s) { return s.step >= kCollapseSteps / 2; });
      values.push_back(measure(*last));
    }
    return median(values);
  };
  const double h = before(entropy), l = before(loss);
  return {row.which.name + ": collapsed until then, recovers after",
          "median entropy under " + short_number(limits.collapsed) + ", then over " + short_number(limits.balanced) +
              ", none dead, with less loss",
          measured({{"entropy then", h},
                    {"loss then", l},
                    {"least entropy at the end", row.least(entropy)},
                    {"most dead", row.most(dead)},
                    {"loss", row.middle(loss)}}),
          h < limits.collapsed && row.least(entropy) > limits.balanced && row.most(dead) == 0 && row.middle(loss) < l};
}

Claim is_a_cause(const Row& hidden, const Row& nothing) {
  const double before = nothing.middle(entropy), d = nothing.middle(dead), l = nothing.middle(loss);
  return {hidden.which.name + ": what all inputs share is a cause",
          "median entropy over " + short_number(before) + ", dead under " + short_number(d) + ", loss below " +
              short_number(l),
          measured({{"entropy", hidden.middle(entropy)}, {"dead", hidden.middle(dead)}, {"loss", hidden.middle(loss)}}),
          hidden.middle(entropy) > before && hidden.middle(dead) < d && hidden.middle(loss) < l};
}

// In every seed an expert is dead, though fewer than without.
Claim too_weak(const Row& weak, const Row& nothing) {
  const double before = nothing.middle(entropy), h = weak.middle(entropy), d = weak.least(dead);
  return {weak.which.name + ": less of it, too weak for a run this short",
          "median entropy over " + short_number(before) + ", 1 dead or more in every run, under " +
              short_number(nothing.middle(dead)) + " in the median",
          measured({{"entropy", h}, {"least dead", d}, {"median", weak.middle(dead)}}),
          h > before && d >= 1 && weak.middle(dead) < nothing.middle(dead)};
}

// What chance leaves, for a router that looks at nothing: N tokens fall evenly on E experts, whatever their cluster. 2
// N ln E times the estimates are distributed as chi squares, of E - 1 and (E - 1)(K - 1) degrees of freedom.
struct Chance {
  Amount entropy, information;  // the least and the most to expect
};

Chance derive_chance(Working& working) {
  const Amount experts = kCollapseExperts, clusters = kCollapseClusters, tokens = kCollapseTestTokens;
  const auto most = [&](Amount freedom) {
    return (freedom + 6 * std::sqrt(2 * freedom)) / (2 * tokens * std::log(experts));
  };
  const Amount loads = experts - 1, cells = (experts - 1) * (clusters - 1);
  const char* formula = "(k + 6 sqrt(2 k)) / (2 x {} x ln {}), k = {}";
  const Amount short_of_even = working.derive(
      "Chance: the entropy of even random loads falls short of 1 by a chi square, at most (6 deviations)",
      filled(formula, {tokens, experts, loads}), most(loads));
  return {1 - short_of_even,
          working.derive("... and the information that such a choice seems to hold about the cluster is at most",
                         filled(formula, {tokens, experts, cells}), most(cells))};
}

Claim is_chance(const Row& random, const Chance& chance) {
  const double h = random.least(entropy), i = random.most(information);
  return {random.which.name + ": as even and as blind as chance",
          "entropy at least " + printed_digits(chance.entropy) + ", information at most " +
              short_number(chance.information),
          "least entropy " + printed_digits(h) + ", most information " + short_number(i),
          h >= chance.entropy && i <= chance.information};
}

Claim is_even(const Row& chosen) {
  const double m = chosen.most([](const auto& s) { return s.max_vio; });
  return {chosen.which.name + ": every expert has as many tokens as any other, in every run", "MaxVio 0",
          measured({{"most MaxVio", m}}), m == 0};
}

class Laboratory {
 public:
  explicit Laboratory(bool full) {
    std::vector<CollapseCase> cases = collapse_cases();
    if (!full) std::erase_if(cases, [](const CollapseCase& c) { return c.role == Role::Shown; });
    const auto runs = run_laboratory(cases, full ? kSeeds : 1);
    for (size_t i = 0; i < cases.size(); ++i) rows_.push_back({cases[i], runs[i]});
  }
  const std::vector<Row>& rows() const { return rows_; }
  const Row& row(const std::string& name) const {
    return *std::find_if(rows_.begin(), rows_.end(), [&](const Row& row) { return row.which.name == name; });
  }
  int64_t num_seeds() const { return static_cast<int64_t>(rows_.front().runs.size()); }

  std::vector<Claim> claims(const Limits& limits) const {
    std::vector<Claim> claims;
    for (const int64_t top_k : {int64_t{1}, int64_t{2}}) {
      const std::string prefix = top_k == 1 ? "" : "top-2: ";
      const Row &nothing = row(prefix + "nothing"), &random = row(prefix + "random routing");
      std::vector<const Row*> cured;
      for (const Row& row : rows_) {
        if (row.which.top_k != top_k) continue;
        if (row.which.role == Role::Collapses && top_k == 1) claims.push_back(collapses(row, limits));
        if (row.which.role != Role::Cure) continue;
        claims.push_back(row.which.from_half_way ? recovers(row, limits) : cures(row, nothing, limits));
        if (!row.which.from_half_way) cured.push_back(&row);
      }
      claims.push_back(balanced_but_worse(random, cured, limits));
    }
    claims.push_back(is_a_cause(row("offset hidden from the router"), row("nothing")));
    claims.push_back(too_weak(row("auxiliary loss 0.01"), row("nothing")));
    claims.push_back(specialises(row("auxiliary loss 0.1")));
    claims.push_back(is_even(row("expert choice")));
    return claims;
  }

  Table table() const {
    Table table{"Relative error, load and specialisation on fresh data",
                "Medians over " + std::to_string(num_seeds()) + (num_seeds() == 1 ? " seed" : " seeds") +
                    ". Entropy: of the loads, 1 is even. MaxVio: the fullest expert over the mean, less 1. Dead: of 8, "
                    "under a tenth of the even load. Information: of the cluster in the choice of expert, in units of "
                    "ln 8. Dropped: assignments over capacity. Unserved: tokens without an expert.",
                {"setting", "error", "entropy", "MaxVio", "dead", "information", "dropped", "unserved"},
                {}};
    for (const Row& row : rows_) {
      std::vector<std::string> cells = {row.which.name};
      for (const Measure& measure :
           {Measure(loss), Measure(entropy), Measure([](const auto& s) { return s.max_vio; }), Measure(dead),
            Measure(information), Measure([](const auto& s) { return s.dropped; }),
            Measure([](const auto& s) { return s.unserved; })})
        cells.push_back(short_number(row.middle(measure)));
      table.rows.push_back(std::move(cells));
    }
    return table;
  }

  report::Chart chart(const char* id, const char* title, const char* y_label, const Measure& measure) const {
    report::Chart chart{
        .id = id, .title = title, .note = "The first seed, training batches.", .y_label = y_label, .from_zero = true};
    for (size_t i = 0; i < rows_.size(); ++i) {
      report::Series series;
      for (const CollapseSnapshot& s : rows_[i].runs.front().history) {
        series.x.push_back(static_cast<double>(s.step));
        series.y.push_back(measure(s));
      }
      chart.curves.push_back({.label = y_label, .run = i, .series = std::move(series)});
    }
    return chart;
  }

  std::vector<report::HeatMap> maps() const {
    std::vector<report::HeatMap> maps;
    for (const Row& row : rows_) {
      const CollapseRun& run = row.runs.front();
      report::HeatMap map{.title = row.which.name,
                          .note = "error " + short_number(run.final.loss) + ", entropy " +
                                  short_number(run.final.entropy) + ", dead " + std::to_string(run.final.dead),
                          .row_label = "expert 1 to 8, darker is more load",
                          .column_label = "step 0 to " + std::to_string(kCollapseSteps)};
      for (const CollapseSnapshot& s : run.history) {
        // An even load is an eighth: a linear scale would hide it.
        std::vector<double> column;
        for (const double share : s.load) column.push_back(std::sqrt(share));
        map.columns.push_back(std::move(column));
      }
      maps.push_back(std::move(map));
    }
    return maps;
  }

 private:
  std::vector<Row> rows_;
};

// The sums of a router that gives every token to the first `live` experts, evenly, with probabilities that say so or
// that are uniform.
nn::BalanceSums made_sums(int64_t live, bool uniform) {
  nn::BalanceSums sums;
  const auto tokens = static_cast<double>(kCollapseTokens);
  sums.num_tokens = kCollapseTokens;
  sums.load_E = at::zeros({kCollapseExperts}, at::kDouble);
  sums.load_E.narrow(0, 0, live).fill_(tokens / static_cast<double>(live));
  sums.score_E = uniform ? at::full({kCollapseExperts}, tokens / kCollapseExperts, at::kDouble) : sums.load_E.clone();
  return sums;
}

// The loss-free bias of an expert in all the windows of a run. Nine tokens: no load is ever the mean.
struct BiasRun {
  double way = 0, largest = 0;
};

BiasRun run_bias() {
  const at::NoGradGuard no_grad;
  nn::TopKRouter router(kMadeWidth, kCollapseExperts, 1,
                        nn::TopKRouterOptions().renormalise(false).selection_bias(true));
  nn::ExpertBank bank(nn::ExpertBankOptions(kCollapseExperts, kMadeWidth, kMadeWidth));
  nn::MoELayer layer(router.ptr(), bank.ptr(), nn::MoELayerOptions().balance({.bias_update_rate = kCollapseBiasRate}));
  router->initialise(make_key(name_key("3b.router")), 1);
  bank->initialise(make_key(name_key("3b.experts")));
  const Tensor x = drawn({kCollapseExperts + 1, kMadeWidth}, "3b.x");
  BiasRun run;
  for (int64_t step = 0; step < kCollapseSteps; ++step) {
    const Tensor before = router->selection_bias()[0].clone();
    layer->forward(x, {.training = true});
    layer->end_window();
    run.way += (router->selection_bias()[0] - before).abs().item<double>();
    run.largest = std::max(run.largest, before.abs().item<double>());
  }
  return run;
}

// Of the experts that choose fewest and most.
std::pair<Amount, Amount> tokens_by_expert_choice() {
  nn::ExpertChoiceRouter router(kMadeWidth, kCollapseExperts, /*capacity_factor=*/1);
  router->initialise(make_key(name_key("3b.router")), 1);
  const nn::Routing routing = router->route(drawn({kCollapseTokens, kMadeWidth}, "3b.tokens"), {});
  const Tensor tokens_E = at::bincount(routing.expert_A, {}, kCollapseExperts);
  return {static_cast<Amount>(tokens_E.min().item<int64_t>()), static_cast<Amount>(tokens_E.max().item<int64_t>())};
}

double zero_z_loss() {
  nn::BalanceSums sums;
  sums.num_tokens = 2;
  sums.squared_lse = at::logsumexp(at::zeros({2, kCollapseExperts}, at::kDouble), 1).square().sum();
  return nn::z_loss(sums).item<double>();
}

Limits derive_balance(Working& working) {
  const Amount experts = kCollapseExperts;
  const auto aux = [](int64_t live, bool uniform) { return nn::aux_loss(made_sums(live, uniform)).item<double>(); };
  const auto figures = [](int64_t live) { return nn::load_figures(made_sums(live, false)); };
  working.say(
      "Rich get richer: only a chosen expert gets a gradient, gets better, and is chosen more. An offset that all "
      "inputs share moves the logits of all tokens alike, so that one expert leads everywhere from the start.");
  const Amount even = working.derive("The auxiliary loss E sum f_i P_i, even load",
                                     filled("{} x {} x (1/{} x 1/{})", {experts, experts, experts, experts}),
                                     experts * experts / experts / experts);
  const Amount one = working.derive("... everything on one expert, and the router sure of it",
                                    filled("{} x 1 x 1", {experts}), experts);
  const Amount ties =
      working.derive("... everything on one expert by ties of a uniform router: the loss cannot tell, log the loads",
                     filled("{} x 1 x 1/{}", {experts, experts}), experts / experts);
  const Amount half =
      working.derive("Normalised entropy of the loads with half of the experts dead",
                     filled("ln {} / ln {}", {experts / 2, experts}), std::log(experts / 2) / std::log(experts));
  const Amount one_dead =
      working.derive("... with one dead: what is balanced has more", filled("ln {} / ln {}", {experts - 1, experts}),
                     std::log(experts - 1) / std::log(experts));
  const Amount fullest = working.derive("MaxVio in full collapse", filled("{} / 1 - 1", {experts}), experts - 1);
  const Amount zero =
      working.derive("The z-loss of logits that are all zero: it holds logits small and says nothing of balance",
                     filled("(ln {})^2", {experts}), std::log(experts) * std::log(experts));
  working.claim_equal("Lathe's auxiliary loss of even loads", even, aux(8, false));
  working.claim_equal("... of one expert, and a router that is sure", one, aux(1, false));
  working.claim_equal("... of one expert, and a uniform router", ties, aux(1, true));
  working.claim_close("Its entropy of loads with half of the experts dead", half, figures(kCollapseExperts / 2).entropy,
                      1e-12);
  working.claim_close("... with one dead", one_dead, figures(kCollapseExperts - 1).entropy, 1e-12);
  working.claim_equal("Its MaxVio in full collapse", fullest, figures(1).max_vio);
  working.claim_close("Its z-loss of zero logits", zero, zero_z_loss(), 1e-12);
  const Amount steps = kCollapseSteps;
  const Amount crossed =
      working.derive("The loss-free bias must be able to cross the spread of the scores, at most 1: rate x steps",
                     filled("{} x {}", {kCollapseBiasRate, steps}), kCollapseBiasRate * steps);
  const BiasRun bias = run_bias();
  // It is rounded to 24 bits in each step, as the rate is.
  working.claim_close("Lathe's bias moves by the rate with every window: its way in as many", crossed, bias.way,
                      (steps * bias.largest + crossed) * 0x1p-24 / crossed);
  const Amount share = working.derive("Expert choice is even by construction: each expert takes T c / E tokens, c = 1",
                                      filled("{} / {}", {kCollapseTokens, experts}), kCollapseTokens / experts);
  const auto [fewest, most] = tokens_by_expert_choice();
  working.claim_equal("Lathe's expert choice: tokens of the expert that has fewest", share, fewest);
  working.claim_equal("... that has most", share, most);
  working.say(
      "Noisy top-k needs k >= 2: renormalised, a single gate G is 1 and passes no gradient, dG/dz = G (1 - G) = 0.");
  return {half, one_dead};
}

Answer answer_routing_collapse(const Settings& settings) {
  Working working(settings);
  const Limits limits = derive_balance(working);
  const Chance chance = derive_chance(working);
  const Laboratory laboratory(settings.full);
  Answer answer = std::move(working.answer);
  answer.in_short =
      "Only chosen experts train, so they get better and are chosen more, until few do all the work and the rest of "
      "the parameters is wasted. An auxiliary loss on the loads, a bias on the choice, or experts that choose their "
      "tokens stop it; a z-loss or jitter alone does not.";
  answer.tables = {laboratory.table()};
  for (Claim& claim : laboratory.claims(limits)) answer.claims.push_back(std::move(claim));
  answer.claims.push_back(is_chance(laboratory.row("random routing"), chance));
  for (const Row& row : laboratory.rows()) answer.names.push_back(row.which.name);
  answer.charts = {
      laboratory.chart("loss", "Relative error", "error", loss),
      laboratory.chart("entropy", "Normalised entropy of the loads", "entropy", entropy),
      laboratory.chart("maxvio", "MaxVio", "MaxVio", [](const auto& s) { return s.max_vio; }),
      laboratory.chart("dead", "Dead experts", "experts", dead),
      laboratory.chart("information", "Mutual information of expert and cluster", "of ln 8", information),
      laboratory.chart("dropped", "Dropped assignments", "share", [](const auto& s) { return s.dropped; }),
  };
  answer.maps = laboratory.maps();
  return answer;
}

}  // namespace

extern const Question kQuestion3b;
const Question kQuestion3b = {
    "3b", "Routing collapse",
    "Why does the router of a mixture of experts send more and more tokens to fewer and fewer experts, what does that "
    "cost, and what stops it? Name at least two cures, and what is none.",
    answer_routing_collapse,
    /*has_long_run=*/true};

}  // namespace lathe::app::practice
