#include <algorithm>

#include "lathe/cost/ops.h"

namespace lathe::cost {
namespace {

// One pass over the assignments through a matrix of `columns` on the side of the hidden features.
Amount product(const ExpertsCost& cost, Amount assignments, Amount columns) {
  return 2 * assignments * cost.in_features * columns;
}

// The products of one pass: up and down.
Amount products(const ExpertsCost& cost, Amount assignments) {
  return product(cost, assignments, cost.up_features()) + product(cost, assignments, cost.hidden_features);
}

// What decoding or converting one expert's matrices takes while a product of `rows` runs: both at once never.
Amount converted_bytes(const ExpertsCost& cost, Amount rows) {
  const auto of = [&](Storage storage, Amount columns) -> Amount {
    const Amount matrix = cost.in_features * columns;
    if (storage == Storage::Float32) return 0;
    if (storage == Storage::BFloat16) return matrix * kFloatBytes;
    const bool narrow = cost.compute == Storage::BFloat16;
    const Amount panel = panel_bytes(cost.in_features, columns, cost.compute);
    return panel + (narrow ? 2 * rows * (cost.in_features + columns) : 0);
  };
  return std::max(of(cost.up_storage, cost.up_features()), of(cost.down_storage, cost.hidden_features));
}

// Of the adapters of the first projection.
Amount up_parameters(const ExpertsCost& cost) { return cost.up_ranks * (cost.in_features + cost.up_features()); }

// Columns of what stands beside an expert's two panels of rows: GELU's derivative, or `copies` that dropout makes of an
// adapter's side, the larger.
Amount passing_columns(const ExpertsCost& cost, Amount copies) {
  const Amount derivative = cost.gated ? 0 : cost.hidden_features;
  if (!cost.adapter_dropout) return derivative;
  const Amount masked =
      std::max(cost.up_ranks > 0 ? cost.in_features : 0, cost.down_ranks > 0 ? cost.hidden_features : 0);
  return std::max(derivative, copies * masked);
}

// The gradients of the adapters of all experts.
void add_adapter_gradients(Ledger& ledger, const ExpertsCost& cost) {
  const auto add = [&](const char* name, Amount parameters) {
    if (parameters > 0) ledger.add_gradient(cost.path + ".experts." + name + ".lora", parameters * kFloatBytes);
  };
  add("up_proj", up_parameters(cost));
  add("down_proj", cost.adapter_parameters() - up_parameters(cost));
}

// All of them are written before the first is added to one that is there.
void add_gradients(Ledger& ledger, const ExpertsCost& cost) {
  const Amount E = cost.num_experts(), D = cost.in_features, F = cost.hidden_features;
  const auto add = [&](const char* name, Amount elements) {
    ledger.add_gradient(cost.path + "." + name, elements * kFloatBytes);
  };
  add("experts.up_proj", E * cost.up_features() * D);
  add("experts.down_proj", E * D * F);
  if (cost.gated) return;
  add("experts.up_proj_bias", E * F);
  add("experts.down_proj_bias", E * D);
}

Value run_experts(Ledger& ledger, const Value& x, const RoutingCost& routing, const ExpertsCost& cost) {
  const Amount D = cost.in_features, F = cost.hidden_features, E = cost.num_experts();
  const Amount assignments = routing.assignments;
  const Amount of_expert = routing.fullest;
  ledger.count(Part::Linear, products(cost, assignments));
  ledger.count(Part::Adapter, 2 * assignments / E * cost.adapter_parameters());
  const Buffer sorted = ledger.allocate(assignments * 2 * kIndexBytes);
  const Buffer gates = ledger.allocate(assignments * kFloatBytes);
  const Saved input(ledger, x);
  const Value h = ledger.tensor(assignments, cost.up_features());
  Value y = ledger.tensor(x.rows, D);
  {
    const Buffer passing = ledger.allocate(of_expert * (D + F + passing_columns(cost, 1)) * kFloatBytes +
                                           converted_bytes(cost, of_expert));
  }
  ledger.record(y, {&x, &routing.gate}, cost.trains || cost.adapter_parameters() > 0,
                [&ledger, cost, sorted, gates, gate = routing.gate.buffer, input, h = h.buffer, assignments, of_expert,
                 wants_dx = x.needs_gradient(), wants_dgates = routing.gate.needs_gradient(),
                 elements = x.elements()](const Buffer&) mutable {
                  const Amount D = cost.in_features, F = cost.hidden_features, H = cost.up_features();
                  const Amount E = cost.num_experts();
                  const Buffer x = input.unpack();
                  Buffer dx = wants_dx ? ledger.allocate(elements * kFloatBytes) : nullptr;
                  Buffer dgates = wants_dgates ? ledger.allocate(assignments * kFloatBytes) : nullptr;
                  // The first product is overwritten by its gradient, or moves into the room of its weight's.
                  const bool moves = cost.trains && 2 * assignments <= E * D;
                  Buffer up = ledger.allocate(cost.trains ? E * D * H * kFloatBytes : 0);
                  if (moves) h.reset();
                  const Amount written = (cost.trains ? E * D * F : 0) + cost.adapter_parameters();
                  {
                    // An adapter's gradient of its input, before and behind the mask.
                    const Amount columns = D + F + passing_columns(cost, 2) + (moves ? H : 0);
                    const Buffer passing = ledger.allocate((of_expert * columns + written) * kFloatBytes +
                                                           converted_bytes(cost, of_expert));
                  }
                  up.reset();
                  if (cost.trains) add_gradients(ledger, cost);
                  add_adapter_gradients(ledger, cost);
                  // x A again, dy B twice, the gradients of A, B and x; the last without what leads to x.
                  const Amount passes = 3 * cost.adapter_parameters() - (wants_dx ? 0 : up_parameters(cost));
                  ledger.count(Part::Adapter, 2 * assignments / E * passes);
                  // The gradients of activations, and those of weights.
                  ledger.count(Part::Linear, wants_dx ? products(cost, assignments) : product(cost, assignments, F));
                  if (cost.trains) ledger.count(Part::Linear, products(cost, assignments));
                  return std::vector<Buffer>{std::move(dx), std::move(dgates)};
                });
  return y;
}

}  // namespace

Value experts(Ledger& ledger, const Value& x, const ExpertsCost& cost) {
  const RoutingCost routing = route(ledger, x, cost);
  const Value mixed = run_experts(ledger, x, routing, cost);
  if (cost.shared.empty()) return mixed;
  const Value shared = linear(ledger, linear_gelu(ledger, x, cost.shared[0]), cost.shared[1]);
  Value y = ledger.tensor(mixed.rows, mixed.columns);
  ledger.record(y, {&mixed, &shared}, false, [](const Buffer& grad) { return std::vector<Buffer>{grad, grad}; });
  return y;
}

}  // namespace lathe::cost
