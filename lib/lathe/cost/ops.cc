#include "lathe/cost/ops.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace lathe::cost {
namespace {

// What a product converts for as long as it runs: the weight, and with it the rows on both sides.
Amount conversion_bytes(const LinearCost& linear, Amount rows) {
  const Amount weight = linear.in_features * linear.out_features;
  const Amount narrow_rows =
      linear.compute == Storage::BFloat16 ? 2 * rows * (linear.in_features + linear.out_features) : 0;
  if (linear.storage == Storage::FourBit)
    return panel_bytes(linear.in_features, linear.out_features, linear.compute) + narrow_rows;
  Amount bytes = narrow_rows;
  if (linear.compute == Storage::BFloat16) bytes += 2 * weight;  // laid out anew by oneDNN
  const bool master = linear.trains && linear.storage == Storage::BFloat16;
  if (master) bytes += 2 * weight;  // rounded
  const Storage stored = linear.trains && !master ? Storage::Float32 : linear.storage;
  if (stored != linear.compute) bytes += weight * bytes_per_element(linear.compute);
  return bytes;
}

void frozen_product(Ledger& ledger, Amount rows, const LinearCost& linear) {
  const Buffer converted = ledger.allocate(conversion_bytes(linear, rows));
  ledger.count(Part::Linear, 2 * rows * linear.in_features * linear.out_features);
}

// A product with the layer's own weight, which autograd or nn::OwnProduct differentiates.
Value own_product(Ledger& ledger, const Value& x, const LinearCost& linear) {
  Value y = ledger.tensor(x.rows, linear.out_features);
  frozen_product(ledger, x.rows, linear);
  const Saved saved = linear.trains ? Saved(ledger, x) : Saved();
  const bool wants_dx = x.needs_gradient();
  ledger.record(y, {&x}, linear.trains, [&ledger, linear, saved, rows = x.rows, wants_dx](const Buffer&) {
    if (linear.trains) {
      const Buffer input = saved.unpack();
      const Buffer converted =
          ledger.allocate(linear.compute == Storage::BFloat16 ? 2 * rows * (linear.in_features + linear.out_features) +
                                                                    2 * linear.in_features * linear.out_features
                                                              : 0);
      ledger.add_gradient(linear.path + ".weight", linear.in_features * linear.out_features * kFloatBytes);
      ledger.count(Part::Linear, 2 * rows * linear.in_features * linear.out_features);
    }
    Buffer dx;
    if (wants_dx) {
      dx = ledger.allocate(rows * linear.in_features * kFloatBytes);
      frozen_product(ledger, rows, linear);
    }
    return std::vector<Buffer>{dx};
  });
  return y;
}

// What nn::JointProduct keeps of one adapted part: dropout(x) Aᵀ.
Value adapter_forward(Ledger& ledger, const Value& x, const LinearCost& linear) {
  const Value dropped = linear.adapter_dropout ? ledger.tensor(x.rows, x.columns) : Value{};
  ledger.count(Part::Adapter, 2 * x.rows * linear.adapter_parameters());
  ledger.note_output(x.rows * linear.out_features);
  return ledger.tensor(x.rows, linear.rank);
}

void adapter_backward(Ledger& ledger, Amount rows, const LinearCost& linear, bool wants_dx) {
  const Value du = ledger.tensor(rows, linear.rank);
  const auto masked = [&] { return linear.adapter_dropout ? ledger.tensor(rows, linear.in_features) : Value{}; };
  {
    const Value input = masked();
    ledger.add_gradient(linear.path + ".lora_A", linear.rank * linear.in_features * kFloatBytes);
  }
  ledger.add_gradient(linear.path + ".lora_B", linear.rank * linear.out_features * kFloatBytes);
  // du and the gradients of A and B
  ledger.count(Part::Adapter, 2 * rows * linear.rank * (2 * linear.out_features + linear.in_features));
  if (!wants_dx) return;
  const Value product = masked(), dropped = masked();
  ledger.count(Part::Adapter, 2 * rows * linear.rank * linear.in_features);
}

// nn::JointProduct over frozen layers and their adapters.
Value joint_product(Ledger& ledger, const Value& x, const std::vector<const LinearCost*>& linears) {
  Amount columns = 0;
  for (const LinearCost* linear : linears) columns += linear->out_features;
  Value y = ledger.tensor(x.rows, columns);
  std::vector<LinearCost> parts;
  std::vector<Buffer> kept;
  bool adapted = false;
  for (const LinearCost* linear : linears) {
    frozen_product(ledger, x.rows, *linear);
    parts.push_back(*linear);
    if (linear->rank == 0) continue;
    adapted = true;
    kept.push_back(adapter_forward(ledger, x, *linear).buffer);
  }
  const Saved saved(ledger, x);
  const bool wants_dx = x.needs_gradient();
  ledger.record(y, {&x}, adapted, [&ledger, parts, kept, saved, rows = x.rows, wants_dx](const Buffer&) {
    const Buffer input = saved.unpack();
    const Buffer dx = wants_dx ? ledger.allocate(rows * parts.front().in_features * kFloatBytes) : nullptr;
    for (const LinearCost& part : parts) {
      if (wants_dx) frozen_product(ledger, rows, part);
      if (part.rank > 0) adapter_backward(ledger, rows, part, wants_dx);
    }
    return std::vector<Buffer>{dx};
  });
  return y;
}

void bias_gradient(Ledger& ledger, const LinearCost& linear) {
  if (linear.trains && linear.bias) ledger.add_gradient(linear.path + ".bias", linear.out_features * kFloatBytes);
}

// A bias is added in place; only one that trains has a gradient of its own.
Value biased(Ledger& ledger, const Value& y, const LinearCost& linear) {
  Value result{y.rows, y.columns, y.buffer};
  ledger.record(result, {&y}, true, [&ledger, linear](const Buffer& grad) {
    bias_gradient(ledger, linear);
    return std::vector<Buffer>{grad};
  });
  return result;
}

// gelu(h + bias) with the bias of the layer that made h.
Value gelu(Ledger& ledger, const Value& h, const LinearCost& linear) {
  Value y = ledger.tensor(h.rows, h.columns);
  if (ledger.elementwise()) y.source = h.buffer;
  ledger.record(y, {&h}, linear.trains, [&ledger, linear, saved = h.buffer](const Buffer& grad) {
    const Buffer dh = grad.use_count() == 1 ? grad : ledger.allocate(saved->bytes());
    bias_gradient(ledger, linear);
    return std::vector<Buffer>{dh};
  });
  return y;
}

}  // namespace

Amount bytes_per_element(Storage storage) { return storage == Storage::BFloat16 ? 2 : 4; }

Amount four_bit_bytes(Amount elements, Amount blocksize, bool double_quant) {
  constexpr Amount kNestedBlocksize = 256;
  const Amount num_blocks = std::ceil(elements / blocksize), codes = std::ceil(elements / 2), table = 16 * kFloatBytes;
  if (!double_quant) return codes + table + num_blocks * kFloatBytes;
  return codes + table + num_blocks + std::ceil(num_blocks / kNestedBlocksize) * kFloatBytes + 256 * kFloatBytes;
}

Amount panel_bytes(Amount in_features, Amount out_features, Storage compute) {
  const auto of = [compute](Amount count, Amount length) {
    constexpr Amount kPanelBytes = 1 << 22, kPanelLines = 480, kLineGroup = 48;
    const Amount line_bytes = length * bytes_per_element(compute);
    const Amount most = std::max(std::floor(kPanelBytes / line_bytes / kLineGroup) * kLineGroup, kPanelLines);
    const Amount equal = std::ceil(count / std::ceil(count / most));
    return std::min(count, std::ceil(equal / kLineGroup) * kLineGroup) * line_bytes;
  };
  return std::max(of(out_features, in_features), of(in_features, out_features));
}

Value linear_product(Ledger& ledger, const Value& x, const LinearCost& linear) {
  return linear.rank > 0 ? joint_product(ledger, x, {&linear}) : own_product(ledger, x, linear);
}

Value linear(Ledger& ledger, const Value& x, const LinearCost& linear) {
  Value y = linear_product(ledger, x, linear);
  return linear.trains ? biased(ledger, y, linear) : y;
}

Value joint_forward(Ledger& ledger, const Value& x, const std::vector<const LinearCost*>& linears) {
  bool frozen = true;
  for (const LinearCost* linear : linears) frozen = frozen && !linear->trains;
  if (frozen) return joint_product(ledger, x, linears);
  std::vector<Value> outputs;
  std::vector<const Value*> inputs;
  Amount columns = 0;
  outputs.reserve(linears.size());
  for (const LinearCost* linear : linears) {
    outputs.push_back(cost::linear(ledger, x, *linear));
    inputs.push_back(&outputs.back());
    columns += linear->out_features;
  }
  Value y = ledger.tensor(x.rows, columns);
  ledger.record(y, inputs, false,  // gradients are column ranges of the joint one
                [parts = inputs.size()](const Buffer& grad) { return std::vector<Buffer>(parts, grad); });
  return y;
}

Value gelu_of_product(Ledger& ledger, const Value& h) { return gelu(ledger, h, {}); }

Value linear_gelu(Ledger& ledger, const Value& x, const LinearCost& linear) {
  return gelu(ledger, linear_product(ledger, x, linear), linear);
}

Value linear_residual_norm(Ledger& ledger, const Value& x, const LinearCost& linear, const Value& residual,
                           const ModuleCost& norm, bool dropout) {
  const Value h = linear_product(ledger, x, linear);
  Value y = ledger.tensor(h.rows, h.columns);
  ledger.note_output(h.elements() * (dropout ? 2 : 1));  // what is normalised
  const Buffer rstd = ledger.allocate(h.rows * kFloatBytes);
  if (ledger.elementwise()) y.source = h.buffer;
  ledger.record(y, {&h, &residual}, linear.trains || norm.trains,
                [&ledger, linear, norm, dropout, saved = h.buffer, rstd, columns = h.columns](const Buffer&) {
                  Buffer dresidual = ledger.allocate(saved->bytes());
                  Buffer dh = dropout ? ledger.allocate(saved->bytes()) : dresidual;
                  if (norm.trains) {
                    const Buffer product = ledger.allocate(saved->bytes());
                    ledger.add_gradient(norm.path + ".weight", columns * kFloatBytes);
                    ledger.add_gradient(norm.path + ".bias", columns * kFloatBytes);
                  }
                  bias_gradient(ledger, linear);
                  return std::vector<Buffer>{std::move(dh), std::move(dresidual)};
                });
  return y;
}

Value layer_norm(Ledger& ledger, const Value& x, const ModuleCost& norm) {
  Value y = ledger.tensor(x.rows, x.columns);
  const Buffer statistics = ledger.allocate(2 * x.rows * kFloatBytes);
  ledger.record(
      y, {&x}, norm.trains,
      [&ledger, norm, saved = x.buffer, statistics, columns = x.columns, wants_dx = x.needs_gradient()](const Buffer&) {
        Buffer dx = wants_dx ? ledger.allocate(saved->bytes()) : nullptr;
        if (norm.trains) {
          ledger.add_gradient(norm.path + ".weight", columns * kFloatBytes);
          ledger.add_gradient(norm.path + ".bias", columns * kFloatBytes);
        }
        return std::vector<Buffer>{std::move(dx)};
      });
  return y;
}

Value rms_norm(Ledger& ledger, const Value& x, const ModuleCost& norm) {
  Value y = ledger.tensor(x.rows, x.columns);
  const Buffer rstd = ledger.allocate(x.rows * kFloatBytes);
  if (ledger.elementwise()) y.source = x.buffer;
  ledger.record(
      y, {&x}, norm.trains,
      [&ledger, norm, saved = x.buffer, rstd, columns = x.columns, wants_dx = x.needs_gradient()](const Buffer&) {
        Buffer dx = wants_dx ? ledger.allocate(saved->bytes()) : nullptr;
        if (norm.trains) ledger.add_gradient(norm.path + ".weight", columns * kFloatBytes);
        return std::vector<Buffer>{std::move(dx)};
      });
  return y;
}

Value swiglu(Ledger& ledger, const Value& h) {
  Value y = ledger.tensor(h.rows, h.columns / 2);
  if (ledger.elementwise()) y.source = h.buffer;
  ledger.record(y, {&h}, false, [&ledger, saved = h.buffer](const Buffer&) {
    return std::vector<Buffer>{ledger.allocate(saved->bytes())};
  });
  return y;
}

Value added(Ledger& ledger, const Value& y, const Value& residual) {
  Value sum{y.rows, y.columns, y.buffer};
  ledger.note_output(y.elements());
  ledger.record(sum, {&y, &residual}, false, [](const Buffer& grad) { return std::vector<Buffer>{grad, grad}; });
  return sum;
}

Value head_cross_entropy(Ledger& ledger, const Value& x, const LinearCost& head) {
  const bool trained = head.trains && ledger.gradients_on();
  const Amount product = 2 * x.elements() * head.out_features;
  ledger.count(Part::Linear, product);
  Value losses = ledger.tensor(x.rows, 1);
  const Buffer dx = x.needs_gradient() && ledger.gradients_on() ? ledger.allocate(x.buffer->bytes()) : nullptr;
  {
    const Amount rows = std::min(kHeadRows, x.rows);
    ledger.note_output(2 * x.rows * head.out_features);  // logits and their logarithms
    const Buffer logits_and_gradient = ledger.allocate(2 * rows * head.out_features * kFloatBytes);
    const Buffer converted = ledger.allocate(conversion_bytes(head, rows));
    if (trained) ledger.add_gradient(head.path + ".weight", x.columns * head.out_features * kFloatBytes);
  }
  ledger.record(losses, {&x}, head.trains, [&ledger, dx, product, trained](const Buffer&) {
    ledger.count(Part::Linear, (dx == nullptr ? 0 : product) + (trained ? product : 0));
    return std::vector<Buffer>{dx};
  });
  return losses;
}

Value embedding(Ledger& ledger, Amount rows, Amount entries, Amount columns, const ModuleCost& table, Storage storage) {
  // What is stored in 16 bits is read as such first; a master's rows are rounded with the gradient of the master.
  const Amount passing = storage == Storage::Float32 ? 0 : rows * columns * (table.trains ? 2 + 2 * kFloatBytes : 2);
  Value y = ledger.tensor(rows, columns);
  const Buffer converted = ledger.allocate(passing);
  ledger.record(y, {}, table.trains, [&ledger, table, bytes = entries * columns * kFloatBytes](const Buffer&) {
    ledger.add_gradient(table.path + ".weight", bytes);
    return std::vector<Buffer>();
  });
  return y;
}

Value tanh(Ledger& ledger, const Value& x) {
  Value y = ledger.tensor(x.rows, x.columns);
  ledger.record(y, {&x}, false, [&ledger, saved = y.buffer](const Buffer&) {
    return std::vector<Buffer>{ledger.allocate(saved->bytes())};
  });
  return y;
}

Value select_rows(Ledger& ledger, const Value& x, Amount rows) {
  Value y = ledger.tensor(rows, x.columns);
  ledger.record(y, {&x}, false, [&ledger, bytes = x.elements() * kFloatBytes](const Buffer&) {
    return std::vector<Buffer>{ledger.allocate(bytes)};
  });
  return y;
}

void cross_entropy_backward(Ledger& ledger, const Value& logits) {
  const Value log_probabilities = ledger.tensor(logits.rows, logits.columns);
  const Buffer gathered = ledger.allocate(log_probabilities.buffer->bytes());
  ledger.backward(logits, ledger.allocate(log_probabilities.buffer->bytes()));
}

Value dropout(Ledger& ledger, const Value& x, bool active) {
  if (!active) return x;
  Value y = ledger.tensor(x.rows, x.columns);
  ledger.record(y, {&x}, false, [&ledger, bytes = y.buffer->bytes()](const Buffer&) {
    return std::vector<Buffer>{ledger.allocate(bytes)};
  });
  return y;
}

Value attention(Ledger& ledger, const std::vector<const Value*>& inputs, const AttentionCost& cost) {
  const Amount query_rows = cost.num_samples * cost.query_length;
  Value output = ledger.tensor(query_rows, cost.width);
  const Buffer lse = ledger.allocate(query_rows * cost.num_heads * kFloatBytes);
  ledger.note_output(2 * query_rows * cost.num_heads * cost.key_length);  // scores and probabilities
  const Amount product = 2 * query_rows * cost.key_length * cost.width;
  ledger.count(Part::Attention, 2 * product);
  std::vector<Buffer> saved = {output.buffer, lse};
  for (const Value* input : inputs) saved.push_back(input->buffer);
  ledger.record(output, inputs, false, [&ledger, cost, saved, product](const Buffer&) {
    std::vector<Buffer> grads;
    for (size_t i = 2; i < saved.size(); ++i) grads.push_back(ledger.allocate(saved[i]->bytes()));
    ledger.count(Part::Attention, (cost.key_gradient ? 5 : 4) * product);  // the scores again, dP, dV, dQ, dK
    return grads;
  });
  return output;
}

Value run_layers(Ledger& ledger, const Value& x, int64_t num_layers, const recipe::Checkpointing& policy,
                 const std::function<Value(int64_t, const Value&)>& layer) {
  using Kind = recipe::Checkpointing::Kind;
  const int64_t per_segment = policy.kind == Kind::Every ? policy.count : 1;
  const int64_t num_recomputed = policy.kind == Kind::Layers                               ? policy.count
                                 : policy.kind == Kind::Full || policy.kind == Kind::Every ? num_layers
                                                                                           : 0;
  ledger.set_elementwise(policy.kind == Kind::Elementwise);
  Value y = x;
  for (int64_t first = 0; first < num_layers;) {
    const int64_t end = std::min(first + per_segment, num_layers);
    const auto run = [layer, first, end](Value in) {
      for (int64_t i = first; i < end; ++i) in = layer(i, in);
      return in;
    };
    y = end == num_layers || first >= num_recomputed ? run(y) : ledger.checkpoint(y, run);
    first = end;
  }
  ledger.set_elementwise(false);
  return y;
}

}  // namespace lathe::cost
