#include <algorithm>
#include <cmath>
#include <utility>

#include "lathe/cost/ops.h"

namespace lathe::cost {
namespace {

// T tokens, D model width, E experts, K top_k, A assignments

using Router = arch::MlpExperts::Router;

constexpr Amount kDoubleBytes = 8, kDoubleColumns = kDoubleBytes / kFloatBytes;

class RouterPass {
 public:
  RouterPass(Ledger& ledger, const Value& x, const ExpertsCost& cost)
      : ledger_(ledger), x_(x), cost_(cost), T_(x.rows), E_(cost.num_experts()), K_(cost.top_k()) {}

  RoutingCost run() {
    RoutingCost routing = choose();
    // A token comes to an expert once.
    routing.fullest = std::min(T_, cost_.load.fullest * routing.assignments / E_);
    const bool limited = cost_.training && cost_.shape.capacity_factor > 0;
    RoutingCost kept = limited ? within_capacity(routing) : routing;
    count(routing);
    if (limited) kept.before_drops = {routing.token, routing.expert, routing.gate.buffer};
    return kept;
  }

 private:
  RoutingCost choose() {
    switch (cost_.shape.router) {
      case Router::Noisy:
        return by_noise();
      case Router::ExpertChoice:
        return by_experts();
      case Router::Random:
        return at_random();
      case Router::Softmax:
      case Router::Sigmoid:
        break;
    }
    return by_scores();
  }

  // nn::TopKRouter
  RoutingCost by_scores() {
    RoutingCost routing;
    const bool sigmoid = cost_.shape.router == Router::Sigmoid;
    routing.logits = product("", jittered());
    const Value scores = squashed(routing.logits);
    const Buffer chosen = ledger_.decide_once([&] {
      const Buffer biased = cost_.shape.has_bias() ? ledger_.allocate(T_ * E_ * kFloatBytes) : nullptr;
      return largest(T_, E_, K_);
    });
    Value gate = gathered(scores, chosen, K_);
    if (cost_.shape.renormalise) gate = over_row_sums(gate);
    routing.scores = sigmoid ? over_row_sums(scores) : scores;
    return token_choice(std::move(routing), chosen, gate);
  }

  // nn::NoisyTopKRouter
  RoutingCost by_noise() {
    RoutingCost routing;
    routing.logits = product("", x_);
    Value noisy = routing.logits, scale;
    if (cost_.training) {
      const Value raw = product(".noise", x_);
      scale = result(T_, E_, {&raw}, {raw.buffer});
      const Buffer draws = ledger_.allocate(T_ * E_ * kDoubleBytes);
      const Value noise = ledger_.tensor(T_, E_);
      const Value scaled = result(T_, E_, {&scale}, {noise.buffer});
      noisy = sum({&routing.logits, &scaled});
    }
    const Buffer chosen = ledger_.decide_once([&] { return largest(T_, E_, K_); });
    const Value gate =
        cost_.shape.renormalise ? squashed(gathered(noisy, chosen, K_)) : gathered(squashed(noisy), chosen, K_);
    routing.scores = squashed(routing.logits);
    if (cost_.training) routing.load = load_probability(routing.logits, noisy, scale, chosen);
    return token_choice(std::move(routing), chosen, gate);
  }

  Value load_probability(const Value& logits, const Value& noisy, const Value& scale, const Buffer& chosen) {
    if (K_ == E_) return ledger_.tensor(T_, E_);
    const Buffer next = ledger_.decide_once([&] { return largest(T_, E_, K_ + 1); });
    const Value kth = gathered(noisy, chosen, 1), after = gathered(noisy, next, 1);
    const Buffer is_chosen = ledger_.allocate(T_ * E_);
    const Value border = result(T_, E_, {&after, &kth}, {is_chosen}, 2 * T_ * E_ * kFloatBytes);
    const Value distance = sum({&logits, &border});
    const Value ratio = result(T_, E_, {&distance, &scale}, {distance.buffer, scale.buffer}, 3 * T_ * E_ * kFloatBytes);
    return result(T_, E_, {&ratio}, {ratio.buffer}, 3 * T_ * E_ * kFloatBytes);
  }

  // nn::ExpertChoiceRouter
  RoutingCost by_experts() {
    RoutingCost routing;
    routing.logits = product("", x_);
    routing.scores = squashed(routing.logits);
    const Amount capacity = std::min(T_, std::ceil(T_ * K_ / E_));
    const Buffer chosen = ledger_.decide_once([&] {
      { const Buffer transposed_twice = ledger_.allocate(2 * T_ * E_ * kDoubleBytes); }
      return largest(E_, T_, capacity);
    });
    routing.assignments = E_ * capacity;
    routing.token = chosen;
    routing.gate = result(routing.assignments, 1, {&routing.scores}, {routing.scores.buffer, chosen});
    routing.expert = repeated(E_, capacity);
    return routing;
  }

  // nn::RandomRouter
  RoutingCost at_random() {
    const Buffer draws = ledger_.allocate(T_ * E_ * kDoubleBytes);
    const Value gate = ledger_.tensor(T_, K_);
    return token_choice({}, ledger_.allocate(T_ * K_ * kIndexBytes), gate);
  }

  RoutingCost token_choice(RoutingCost routing, const Buffer& chosen, const Value& gate) {
    routing.assignments = T_ * K_;
    routing.token = repeated(T_, K_);
    routing.expert = chosen;
    routing.gate = gate;
    return routing;
  }

  // nn::drop_over_capacity
  RoutingCost within_capacity(const RoutingCost& routing) {
    RoutingCost kept = routing;
    kept.assignments = routing.assignments * (1 - cost_.load.dropped);
    kept.fullest = std::min(routing.fullest, std::ceil(routing.assignments * cost_.shape.capacity_factor / E_));
    const Buffer which = ledger_.decide_once([&] {
      const Buffer gates = ledger_.allocate(routing.assignments * kDoubleBytes);
      return ledger_.allocate(kept.assignments * kIndexBytes);
    });
    kept.token = ledger_.allocate(kept.assignments * kIndexBytes);
    kept.expert = ledger_.allocate(kept.assignments * kIndexBytes);
    kept.gate = result(kept.assignments, 1, {&routing.gate}, {which});
    return kept;
  }

  // nn::BalanceSums::of: the terms that have a weight are differentiable.
  void count(const RoutingCost& routing) {
    { const Buffer uses = ledger_.allocate(T_ * (kIndexBytes + 1)); }
    const bool noisy = cost_.shape.router == Router::Noisy;
    const auto term = [&](bool weighed, const auto& sums) {
      if (weighed) ledger_.add_objective(sums());
      if (!weighed) ledger_.without_gradient(sums);
    };
    const double aux = cost_.shape.aux_loss_weight;
    term(noisy && aux > 0, [&] {
      const Value gate = in_doubles(routing.gate);
      return result(1, kDoubleColumns, {&gate}, {routing.expert});
    });
    if (routing.scores.buffer != nullptr) term(!noisy && aux > 0, [&] { return in_doubles(routing.scores); });
    if (routing.load.buffer != nullptr) term(noisy && aux > 0, [&] { return in_doubles(routing.load); });
    if (routing.logits.buffer == nullptr) return;
    term(cost_.shape.z_loss_weight > 0, [&] {
      const Value logits = in_doubles(routing.logits), lse = ledger_.tensor(T_, kDoubleColumns);
      { const Buffer shifted = ledger_.allocate(T_ * E_ * kDoubleBytes); }
      return result(1, kDoubleColumns, {&logits}, {logits.buffer, lse.buffer}, 2 * T_ * E_ * kDoubleBytes);
    });
  }

  // x (1 + jitter u)
  Value jittered() {
    if (!cost_.training || cost_.shape.jitter == 0) return x_;
    const Buffer draws = ledger_.allocate(x_.elements() * kDoubleBytes);
    const Buffer factor = ledger_.tensor(T_, x_.columns).buffer;
    return result(T_, x_.columns, {&x_}, {factor});
  }

  Value product(const char* matrix, const Value& x) {
    return linear(ledger_, x, {cost_.path + ".gate" + matrix, cost_.in_features, E_, false, cost_.router_trains});
  }

  // softmax or sigmoid
  Value squashed(const Value& x) {
    Value y = ledger_.tensor(x.rows, x.columns);
    record(y, {&x}, {y.buffer}, 0);
    return y;
  }

  // x over the sum of each row
  Value over_row_sums(const Value& x) {
    const Value sums = ledger_.tensor(x.rows, 1);
    return result(x.rows, x.columns, {&x}, {x.buffer, sums.buffer}, 3 * x.elements() * kFloatBytes);
  }

  Value gathered(const Value& x, const Buffer& index, Amount columns) {
    return result(x.rows, columns, {&x}, {x.buffer, index});
  }

  Value in_doubles(const Value& x) { return result(x.rows, kDoubleColumns * x.columns, {&x}, {}); }

  // nn::stable_top_k
  Buffer largest(Amount rows, Amount columns, Amount k) {
    const Buffer doubles = ledger_.allocate(rows * columns * kDoubleBytes);
    return ledger_.allocate(rows * k * kIndexBytes);
  }

  // at::repeat_interleave of 0, 1, ...
  Buffer repeated(Amount entries, Amount times) {
    const Buffer range = ledger_.allocate(2 * entries * kIndexBytes);
    const Buffer index = ledger_.allocate(entries * times * kIndexBytes);
    return ledger_.allocate(entries * times * kIndexBytes);
  }

  // y = ± a ± b
  Value sum(const std::vector<const Value*>& parts) {
    Value y = ledger_.tensor(T_, E_);
    ledger_.record(y, parts, false, [](const Buffer& grad) { return std::vector<Buffer>{grad, grad}; });
    return y;
  }

  // An operator's result. Until its backward pass it keeps `kept`; that takes `passing` bytes besides the gradients,
  // which are as large as the inputs.
  Value result(Amount rows, Amount columns, const std::vector<const Value*>& inputs, std::vector<Buffer> kept,
               Amount passing = 0) {
    Value y = ledger_.tensor(rows, columns);
    record(y, inputs, std::move(kept), passing);
    return y;
  }

  void record(Value& y, const std::vector<const Value*>& inputs, std::vector<Buffer> kept, Amount passing) {
    std::vector<Amount> bytes;
    for (const Value* input : inputs) bytes.push_back(input->needs_gradient() ? input->elements() * kFloatBytes : -1);
    ledger_.record(y, inputs, false,
                   [&ledger = ledger_, kept = std::move(kept), passing, bytes = std::move(bytes)](const Buffer&) {
                     const Buffer temporaries = ledger.allocate(passing);
                     std::vector<Buffer> grads;
                     for (const Amount of_input : bytes)
                       grads.push_back(of_input < 0 ? nullptr : ledger.allocate(of_input));
                     return grads;
                   });
  }

  Ledger& ledger_;
  const Value& x_;
  const ExpertsCost& cost_;
  Amount T_, E_, K_;
};

}  // namespace

RoutingCost route(Ledger& ledger, const Value& x, const ExpertsCost& cost) { return RouterPass(ledger, x, cost).run(); }

}  // namespace lathe::cost
