#include "lathe/cost/ledger.h"

#include <algorithm>
#include <map>
#include <utility>

namespace lathe::cost {
Allocation::Allocation(Ledger& ledger, Amount bytes)
    : ledger_(ledger),
      bytes_(bytes),
      site_(ledger.site_),
      temporary_(ledger.pass_ != Pass::Forward && site_ != Site::Gradients) {
  ledger_.live_ += bytes_;
  ledger_.live_at_[static_cast<size_t>(site_)] += bytes_;
  ledger_.written_ += bytes_;
  if (temporary_) ledger_.temporaries_ += bytes_;
  if (!ledger_.phase_peaks_.empty()) {
    Amount& peak = ledger_.phase_peaks_[ledger_.phase_].second;
    peak = std::max(peak, ledger_.live_);
  }
  if (ledger_.live_ <= ledger_.peak_) return;
  ledger_.peak_ = ledger_.live_;
  if (!ledger_.phase_peaks_.empty()) ledger_.peak_phase_ = ledger_.phase_peaks_[ledger_.phase_].first;
  ledger_.peak_gradients_ = ledger_.gradient_bytes_;
  ledger_.peak_temporaries_ = ledger_.temporaries_;
}

Allocation::~Allocation() {
  ledger_.live_ -= bytes_;
  if (temporary_) ledger_.temporaries_ -= bytes_;
  ledger_.live_at_[static_cast<size_t>(site_)] -= bytes_;
}

Saved::Saved(Ledger& ledger, const Value& value) : ledger_(&ledger), given_away_(ledger.recomputing()) {
  const bool again = ledger.elementwise() && value.source != nullptr;
  kept_ = again ? value.source : value.buffer;
  again_bytes_ = again ? value.elements() * kFloatBytes : 0;
}

Buffer Saved::unpack() const {
  if (again_bytes_ > 0) return ledger_->allocate(again_bytes_);
  return given_away_ ? std::move(kept_) : kept_;
}

Buffer Ledger::allocate(Amount bytes) { return std::make_shared<const Allocation>(*this, bytes); }

Value Ledger::tensor(Amount rows, Amount columns) {
  note_output(rows * columns);
  return {rows, columns, allocate(rows * columns * kFloatBytes)};
}

void Ledger::enter(const std::string& phase) {
  const auto found =
      std::find_if(phase_peaks_.begin(), phase_peaks_.end(), [&](const auto& known) { return known.first == phase; });
  phase_ = static_cast<size_t>(found - phase_peaks_.begin());
  if (found == phase_peaks_.end()) phase_peaks_.emplace_back(phase, live_);
}

void Ledger::record(Value& output, const std::vector<const Value*>& inputs, bool trains,
                    std::function<std::vector<Buffer>(Buffer)> backward) {
  const bool wanted =
      std::any_of(inputs.begin(), inputs.end(), [](const Value* input) { return input->needs_gradient(); });
  trains_ = trains_ || trains;
  if (!gradients_on_ || !(wanted || trains)) return;
  output.node = std::make_shared<Node>();
  for (const Value* input : inputs) output.node->inputs.push_back(input->node);
  output.node->backward = std::move(backward);
  output.node->order = num_nodes_++;
  output.node->site = site_;
}

void Ledger::add_gradient(const std::string& parameter, Amount bytes) {
  const Site site = std::exchange(site_, Site::Gradients);
  Buffer grad = allocate(bytes);
  site_ = site;
  if (const auto [kept, first] = gradients_.try_emplace(parameter, grad); first) {
    gradient_bytes_ += bytes;
  } else {
    added_gradients_.push_back(std::move(grad));
  }
}

void Ledger::backward(const Value& output, Buffer grad) {
  if (!output.needs_gradient()) return;
  output.node->grad = std::move(grad);
  const Pass outer = std::exchange(pass_, Pass::Backward);
  // Nodes in the order of their making, last first: a node is reached after everything that used its output.
  std::map<int64_t, std::shared_ptr<Node>> ready = {{-output.node->order, output.node}};
  for (auto& node : std::exchange(objectives_, {})) ready.emplace(-node->order, std::move(node));
  while (!ready.empty()) {
    const std::shared_ptr<Node> node = ready.extract(ready.begin()).mapped();
    Buffer incoming = std::exchange(node->grad, nullptr);
    site_ = node->site;
    std::vector<Buffer> grads = node->backward(std::move(incoming));
    node->backward = nullptr;
    added_gradients_.clear();
    for (size_t i = 0; i < node->inputs.size(); ++i) {
      const std::shared_ptr<Node>& input = node->inputs[i];
      if (input == nullptr || grads[i] == nullptr) continue;
      if (input->grad == nullptr) {
        input->grad = std::move(grads[i]);
      } else if (input->grad.use_count() > 1) {  // a sum; where nobody else holds it, a second one is added in place
        input->grad = allocate(input->grad->bytes());
      }
      grads[i].reset();
      ready.emplace(-input->order, input);
    }
  }
  pass_ = outer;
}

Value Ledger::checkpoint(const Value& x, const std::function<Value(const Value&)>& fn) {
  if (!gradients_on_) return fn(x);
  trains_ = false;
  const Buffer generator_state = allocate(kGeneratorStateBytes);
  decisions_ = {std::make_shared<std::vector<Buffer>>()};
  Value output = without_gradient([&] { return fn(x); });
  record(output, {&x}, trains_, [this, x, fn, generator_state, decided = std::exchange(decisions_, {})](Buffer grad) {
    Value input{x.rows, x.columns, x.buffer};
    Buffer result;
    if (x.needs_gradient()) {
      input.node = std::make_shared<Node>();
      input.node->order = -1;  // after all others
      input.node->backward = [&result](const Buffer& collected) {
        result = collected;
        return std::vector<Buffer>();
      };
    }
    const Pass outer = std::exchange(pass_, Pass::Recompute);
    decisions_ = {decided.values, /*replaying=*/true};
    Buffer generator_now = allocate(kGeneratorStateBytes);  // put back afterwards
    Value again = fn(input);
    generator_now.reset();
    decisions_ = {};
    pass_ = outer;
    again.buffer.reset();
    backward(again, std::move(grad));
    return std::vector<Buffer>{result};
  });
  return output;
}

Buffer Ledger::decide_once(const std::function<Buffer()>& f) {
  if (decisions_.values == nullptr) return f();
  if (!decisions_.replaying) decisions_.values->push_back(f());
  return decisions_.values->at(decisions_.next++);
}

void Ledger::add_objective(const Value& loss) {
  if (!loss.needs_gradient()) return;
  loss.node->grad = allocate(0);
  objectives_.push_back(loss.node);
}

Value Ledger::without_gradient(const std::function<Value()>& fn) {
  const bool outer = std::exchange(gradients_on_, false);
  Value value = fn();
  gradients_on_ = outer;
  return value;
}

Amount Ledger::largest_gradient_bytes() const {
  Amount bytes = 0;
  for (const auto& [name, grad] : gradients_) bytes = std::max(bytes, grad->bytes());
  return bytes;
}

}  // namespace lathe::cost
