#include "lathe/train/profiler.h"

#include <ATen/Parallel.h>
#include <ATen/core/function_schema.h>
#include <time.h>

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "lathe/nn/gemm.h"

namespace lathe::train {

// What of an operator's tensors is read, written, multiplied.
struct OperatorTraffic {
  std::vector<bool> reads, writes;  // by argument
  bool returns_new = false;         // tensors that are no argument's
  bool looks_up = false;            // reads of its first argument only as much as it returns
  bool own_kernel = false;          // names each tensor that it touches, once
  int matrix = -1;                  // the argument whose last dimension a product sums over
};

// A call that has begun.
struct RecordedCall : at::ObserverContext {
  struct Amounts {
    int64_t cpu_ns = 0, counted_flops = 0, bytes = 0;
  };
  report::ProfileEvent event;
  const OperatorTraffic* traffic = nullptr;
  Amounts inside;              // of the calls inside
  int64_t bytes = 0;           // by this call's tensors
  int64_t counted_before = 0;  // products of sgemm
  int64_t summed = 0;          // the length of a product's sums
  RecordedCall* outer = nullptr;
};

struct Profiler::State {
  report::Profile profile;
  std::unordered_map<std::string, size_t> names;
  std::unordered_map<std::string, OperatorTraffic> traffic;
  RecordedCall* innermost = nullptr;
  int64_t step = 0;

  size_t number_of(std::string name);
  const OperatorTraffic& known_traffic(const at::RecordFunction& call);
  std::unique_ptr<RecordedCall> begin(const at::RecordFunction& call);
  void end(const at::RecordFunction& call, RecordedCall& done);
};

namespace {

int64_t nanoseconds(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

OperatorTraffic traffic_of(const at::RecordFunction& call) {
  OperatorTraffic traffic;
  const auto schema = call.operator_schema();
  if (!schema) {
    traffic.own_kernel = call.scope() == at::RecordScope::FUNCTION;
    return traffic;
  }
  std::string_view name = schema->name();
  name.remove_prefix(std::min(name.size(), name.find("::") + 2));
  const bool overwrites = is_one_of(name, {"copy_", "fill_", "zero_"});
  const bool reserves = name.find("empty") != name.npos || is_one_of(name, {"resize_", "set_"});
  const bool shapes_only = name.ends_with("_like") || name.starts_with("new_");
  for (const c10::Argument& argument : schema->arguments()) {
    const bool first = traffic.writes.empty();
    const bool is_written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    traffic.writes.push_back(is_written && !reserves);
    traffic.reads.push_back(!argument.is_out() && !(first && overwrites) && !reserves && !shapes_only);
  }
  for (const c10::Argument& result : schema->returns()) {
    if (result.alias_info() == nullptr) {
      traffic.returns_new = !reserves;
    } else if (!result.alias_info()->isWrite()) {  // a view
      std::fill(traffic.reads.begin(), traffic.reads.end(), false);
    }
  }
  traffic.looks_up = is_one_of(name, {"embedding", "index_select", "gather", "index"});
  if (is_one_of(name, {"mm", "bmm"})) traffic.matrix = 0;
  if (is_one_of(name, {"addmm", "addmm_", "baddbmm", "baddbmm_"})) traffic.matrix = 1;
  return traffic;
}

int64_t bytes_of(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return 0;
  // An expanded tensor has fewer bytes than elements.
  return std::min(static_cast<int64_t>(tensor.nbytes()), static_cast<int64_t>(tensor.storage().nbytes()));
}

int64_t bytes_of(const c10::IValue& value) {
  if (value.isTensor()) return bytes_of(value.toTensor());
  int64_t bytes = 0;
  if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) bytes += bytes_of(tensor);
  }
  return bytes;
}

// "torch::autograd::CppNode<lathe::nn::(anonymous namespace)::FusedGelu>" -> "FusedGelu backward"
std::string short_name(std::string name) {
  if (!name.starts_with("torch::autograd::CppNode<")) return name;
  while (name.ends_with('>') || name.ends_with(' ')) name.pop_back();
  return name.substr(name.find_last_of(":<") + 1) + " backward";
}

thread_local Profiler::State* recording = nullptr;

std::unique_ptr<at::ObserverContext> on_begin(const at::RecordFunction& call) {
  if (std::string_view(call.name()).starts_with("autograd::engine::")) return nullptr;  // wraps a node of its own
  return recording->begin(call);
}

void on_end(const at::RecordFunction& call, at::ObserverContext* frame) {
  if (frame != nullptr) recording->end(call, static_cast<RecordedCall&>(*frame));
}

}  // namespace

size_t Profiler::State::number_of(std::string name) {
  const auto [found, is_new] = names.emplace(std::move(name), profile.names.size());
  if (is_new) profile.names.push_back(found->first);
  return found->second;
}

const OperatorTraffic& Profiler::State::known_traffic(const at::RecordFunction& call) {
  const std::string key = std::string(call.name()) + "." + call.overload_name();
  const auto found = traffic.find(key);
  return found != traffic.end() ? found->second : traffic.emplace(key, traffic_of(call)).first->second;
}

std::unique_ptr<RecordedCall> Profiler::State::begin(const at::RecordFunction& call) {
  auto begun = std::make_unique<RecordedCall>();
  begun->outer = std::exchange(innermost, begun.get());
  begun->event.name = number_of(short_name(call.name()));
  begun->event.step = step;
  begun->traffic = &known_traffic(call);
  const OperatorTraffic& known = *begun->traffic;
  const auto inputs = call.inputs();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool reads = known.own_kernel || (i < known.reads.size() && known.reads[i] && !(known.looks_up && i == 0));
    const bool writes = i < known.writes.size() && known.writes[i];
    if (reads || writes) begun->bytes += (reads + writes) * bytes_of(inputs[i]);
    if (static_cast<int>(i) == known.matrix) begun->summed = inputs[i].toTensor().size(-1);
  }
  begun->counted_before = nn::counted_flops();
  begun->event.start_ns = nanoseconds(CLOCK_MONOTONIC);
  begun->event.cpu_start_ns = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
  return begun;
}

void Profiler::State::end(const at::RecordFunction& call, RecordedCall& done) {
  report::ProfileEvent& event = done.event;
  event.cpu_ns = nanoseconds(CLOCK_THREAD_CPUTIME_ID) - event.cpu_start_ns;
  event.wall_ns = nanoseconds(CLOCK_MONOTONIC) - event.start_ns;
  for (const c10::IValue& output : call.outputs()) {
    if (done.traffic->returns_new) done.bytes += (1 + done.traffic->looks_up) * bytes_of(output);
    if (done.traffic->matrix >= 0) event.flops += 2 * output.toTensor().numel() * done.summed;
  }
  const int64_t counted = nn::counted_flops() - done.counted_before;
  event.flops += counted - done.inside.counted_flops;
  event.self_cpu_ns = event.cpu_ns - done.inside.cpu_ns;
  // What an operator hands on to others is theirs (and what those do beside, such as converting a scalar, is taken off
  // too: an operator and the calls inside have together at least its tensors' bytes); an own kernel touches its tensors
  // itself.
  event.bytes = done.traffic->own_kernel ? done.bytes : std::max<int64_t>(0, done.bytes - done.inside.bytes);
  innermost = done.outer;
  if (innermost != nullptr) {
    innermost->inside.cpu_ns += event.cpu_ns;
    innermost->inside.counted_flops += counted;
    innermost->inside.bytes += event.bytes + done.inside.bytes;
  }
  profile.events.push_back(event);
}

Profiler::Recording::Recording(Profiler& profiler, int64_t step)
    : callback_(at::addThreadLocalCallback(
          at::RecordFunctionCallback(on_begin, on_end).needsInputs(true).needsOutputs(true))) {
  recording = profiler.state_.get();
  recording->step = step;
  ++recording->profile.num_steps;
  nn::set_counting_flops(true);
  step_ = std::make_unique<at::RecordFunction>(at::RecordScope::USER_SCOPE);
  step_->before("step");
}

Profiler::Recording::~Recording() {
  step_.reset();
  nn::set_counting_flops(false);
  recording = nullptr;
  at::removeCallback(callback_);
}

Profiler::Profiler(int64_t num_steps) : num_steps_(num_steps), state_(std::make_unique<State>()) {}
Profiler::~Profiler() = default;

int64_t Profiler::num_recorded() const { return state_->profile.num_steps; }

report::Profile Profiler::take() {
  report::Profile profile = std::move(state_->profile);
  state_ = std::make_unique<State>();
  profile.num_threads = at::get_num_threads();
  if (profile.events.empty()) return profile;
  std::sort(profile.events.begin(), profile.events.end(),
            [](const report::ProfileEvent& a, const report::ProfileEvent& b) {
              return std::pair(a.start_ns, -a.wall_ns) < std::pair(b.start_ns, -b.wall_ns);
            });
  const int64_t first = profile.events.front().start_ns, first_cpu = profile.events.front().cpu_start_ns;
  for (report::ProfileEvent& event : profile.events) {
    event.start_ns -= first;
    event.cpu_start_ns -= first_cpu;
  }
  return profile;
}

}  // namespace lathe::train
