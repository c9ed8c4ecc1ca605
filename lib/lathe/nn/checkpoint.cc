#include "lathe/nn/checkpoint.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "lathe/nn/dropout.h"

namespace lathe::nn {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::SavedVariableHooks;

// LibTorch asks its engine for hooks whenever an operator saves a tensor; its C++ interface offers no other way to give
// them. The hooks come from a stack per thread.
class HookFactory {
 public:
  virtual ~HookFactory() = default;
  virtual std::unique_ptr<SavedVariableHooks> make() = 0;
};

std::vector<HookFactory*>& hook_stack() {
  static thread_local std::vector<HookFactory*> stack;
  return stack;
}

class HookEngine final : public torch::autograd::Engine {
 public:
  ~HookEngine() override { stop(); }
  std::unique_ptr<SavedVariableHooks> get_default_saved_variable_hooks() override {
    return hook_stack().empty() ? nullptr : hook_stack().back()->make();
  }
  static Engine& instance() {
    static auto* engine = new HookEngine;  // never destroyed: backward threads may outlive static objects
    return *engine;
  }
};

void install_engine() {
  static const bool done = (torch::autograd::set_default_engine_stub(&HookEngine::instance), true);
  (void)done;
}

class HookScope {
 public:
  explicit HookScope(HookFactory& factory) { hook_stack().push_back(&factory); }
  ~HookScope() { hook_stack().pop_back(); }
  HookScope(const HookScope&) = delete;
  HookScope& operator=(const HookScope&) = delete;
};

// The decisions of one outermost region, in the order in which they fall; a recomputation reads them from where its
// region began.
struct Decisions {
  std::shared_ptr<std::vector<Tensor>> values;
  size_t next = 0;
  bool replaying = false;
};

Decisions& decisions() {
  static thread_local Decisions current;
  return current;
}

// What else decides the result of a region: it must be the same in the recomputation.
struct Ambient {
  Tensor generator_state;
  DropoutStream::State dropout = DropoutStream::state();
  bool autocast = at::autocast::is_autocast_enabled(at::kCPU);
  at::ScalarType autocast_dtype = at::autocast::get_autocast_dtype(at::kCPU);
  Decisions decided = decisions();

  Ambient() {
    auto generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator_state = generator.get_state();
  }
  void apply() const {
    auto generator = at::detail::getDefaultCPUGenerator();
    {
      const std::lock_guard<std::mutex> lock(generator.mutex());
      generator.set_state(generator_state);
    }
    DropoutStream::set_state(dropout);
    at::autocast::set_autocast_enabled(at::kCPU, autocast);
    at::autocast::set_autocast_dtype(at::kCPU, autocast_dtype);
    decisions() = decided;
  }
};

// One region of policy Full.
struct Frame {
  struct Slot {  // one tensor that autograd wanted to keep, in order of saving
    std::vector<int64_t> sizes;
    at::ScalarType dtype;
    bool wanted = true;  // its graph node is alive
    Tensor value{};      // between recomputation and use
    uint32_t version = 0;
  };
  struct Stop {};  // not a std::exception: no code in between may swallow it

  CheckpointRegion::Rerun rerun;
  std::vector<SavedVariable> inputs;  // made under the enclosing hooks: an outer region drops them too
  std::vector<bool> input_requires_grad;
  Ambient ambient;
  std::vector<Slot> slots;

  void recompute();
};

// During the forward pass: remembers the shape of what it is given, and its place.
class DroppingHook final : public SavedVariableHooks {
 public:
  explicit DroppingHook(std::shared_ptr<Frame> frame) : frame_(std::move(frame)) {}
  ~DroppingHook() override {
    if (index_ >= frame_->slots.size()) return;  // LibTorch may drop a hook unused
    frame_->slots[index_].wanted = false;
    frame_->slots[index_].value.reset();
  }
  void call_pack_hook(const Tensor& tensor) override {
    index_ = frame_->slots.size();
    frame_->slots.push_back({tensor.sizes().vec(), tensor.scalar_type()});
  }
  Tensor call_unpack_hook() override {
    Frame::Slot& slot = frame_->slots.at(index_);
    if (!slot.value.defined()) frame_->recompute();
    TORCH_CHECK(slot.value.unsafeGetTensorImpl()->version_counter().current_version() == slot.version,
                "checkpoint: a tensor that a gradient needs was modified in place after it was saved");
    return std::exchange(slot.value, Tensor());
  }

 private:
  std::shared_ptr<Frame> frame_;
  size_t index_ = static_cast<size_t>(-1);
};

// During the recomputation: fills the slots that are still wanted.
class RecordingHook final : public SavedVariableHooks {
 public:
  RecordingHook(Frame& frame, size_t& next) : frame_(frame), next_(next) {}
  void call_pack_hook(const Tensor& tensor) override {
    TORCH_CHECK(next_ < frame_.slots.size(), "checkpoint: the recomputation saved more tensors than the forward pass");
    Frame::Slot& slot = frame_.slots[next_];
    if (slot.wanted) {
      TORCH_CHECK(tensor.sizes() == slot.sizes && tensor.scalar_type() == slot.dtype, "checkpoint: saved tensor ",
                  next_, " was ", slot.dtype, " ", at::IntArrayRef(slot.sizes), " in the forward pass and is ",
                  tensor.scalar_type(), " ", tensor.sizes(),
                  " in the recomputation: the function does not repeat itself");
      slot.value = tensor.detach();  // keeps neither the second graph nor a cycle alive
      slot.version = slot.value.unsafeGetTensorImpl()->version_counter().current_version();
    }
    if (++next_ == frame_.slots.size()) throw Frame::Stop{};
  }
  Tensor call_unpack_hook() override { TORCH_CHECK(false, "checkpoint: a backward pass inside a recomputation"); }

 private:
  Frame& frame_;
  size_t& next_;
};

class RecordingFactory final : public HookFactory {
 public:
  RecordingFactory(Frame& frame, size_t& next) : frame_(frame), next_(next) {}
  std::unique_ptr<SavedVariableHooks> make() override { return std::make_unique<RecordingHook>(frame_, next_); }

 private:
  Frame& frame_;
  size_t& next_;
};

void Frame::recompute() {
  struct Restore {
    Ambient now;
    ~Restore() { now.apply(); }
  } restore;
  const at::AutoGradMode grad_on(true);
  std::vector<Tensor> again;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor input = inputs[i].unpack();  // may recompute the enclosing region
    again.push_back(input.defined() ? input.detach().requires_grad_(input_requires_grad[i]) : input);
  }
  ambient.apply();
  decisions().replaying = true;
  size_t next = 0;
  RecordingFactory factory(*this, next);
  try {
    const HookScope scope(factory);
    rerun(again);
  } catch (const Stop&) {
  }
  TORCH_CHECK(next == slots.size(), "checkpoint: the recomputation saved ", next, " tensors, the forward pass ",
              slots.size(), ": the function does not repeat itself");
}

class DroppingFactory final : public HookFactory {
 public:
  explicit DroppingFactory(std::shared_ptr<Frame> frame) : frame_(std::move(frame)) {}
  std::unique_ptr<SavedVariableHooks> make() override { return std::make_unique<DroppingHook>(frame_); }

 private:
  std::shared_ptr<Frame> frame_;
};

// In a region of policy Elementwise: keeps the tensor, or the way to compute it.
class OnDemandHook final : public SavedVariableHooks {
 public:
  using Find = std::function<std::function<Tensor()>(const Tensor&)>;
  explicit OnDemandHook(Find find) : find_(std::move(find)) {}
  void call_pack_hook(const Tensor& tensor) override {
    again_ = find_(tensor);
    find_ = nullptr;
    if (again_) {
      sizes_ = tensor.sizes().vec();
    } else {
      kept_ = tensor.detach();
    }
  }
  Tensor call_unpack_hook() override {
    if (!again_) return kept_;
    const at::NoGradGuard no_grad;
    return again_().view(sizes_);
  }

 private:
  Find find_;
  std::function<Tensor()> again_;
  std::vector<int64_t> sizes_;
  Tensor kept_;
};

class ElementwiseFactory final : public HookFactory {
 public:
  std::unique_ptr<SavedVariableHooks> make() override {
    return std::make_unique<OnDemandHook>([this](const Tensor& tensor) { return find(tensor); });
  }
  void add(const Tensor& y, std::function<Tensor()> again) {
    recipes_.push_back({y.storage().getWeakStorageImpl(), y.numel(), y.scalar_type(), std::move(again)});
  }

 private:
  struct Recipe {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;
    int64_t numel;
    at::ScalarType dtype;
    std::function<Tensor()> again;
  };

  std::function<Tensor()> find(const Tensor& tensor) {
    // A storage that is gone takes its recipe along: its address may come back.
    std::erase_if(recipes_, [](const Recipe& recipe) { return recipe.storage.expired(); });
    if (!tensor.has_storage() || !tensor.is_contiguous()) return {};
    const c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
    for (const Recipe& recipe : recipes_) {
      if (recipe.storage._unsafe_get_target() == storage && recipe.numel == tensor.numel() &&
          recipe.dtype == tensor.scalar_type())
        return recipe.again;
    }
    return {};
  }

  std::vector<Recipe> recipes_;
};

ElementwiseFactory* innermost_elementwise() {
  return hook_stack().empty() ? nullptr : dynamic_cast<ElementwiseFactory*>(hook_stack().back());
}

std::shared_ptr<Frame> make_frame(const std::vector<Tensor>& inputs, CheckpointRegion::Rerun rerun) {
  if (decisions().values == nullptr) decisions() = {std::make_shared<std::vector<Tensor>>(), 0, false};
  auto frame = std::make_shared<Frame>();
  for (const Tensor& input : inputs) {
    frame->inputs.emplace_back(input.defined() ? input.detach() : input, /*is_output=*/false);
    frame->input_requires_grad.push_back(input.defined() && input.requires_grad());
  }
  frame->rerun = std::move(rerun);
  return frame;
}

// An open region: its hooks are on the stack.
struct OpenRegion {
  std::unique_ptr<HookFactory> factory;
  bool outermost = false;
  HookScope scope;

  OpenRegion(std::unique_ptr<HookFactory> hooks, bool is_outermost)
      : factory(std::move(hooks)), outermost(is_outermost), scope(*factory) {}
  ~OpenRegion() {
    if (outermost) decisions() = {};
  }
};

}  // namespace

CheckpointRegion::CheckpointRegion(Recompute policy, const std::vector<Tensor>& inputs, Rerun rerun) {
  if (policy == Recompute::None || !at::GradMode::is_enabled()) return;
  install_engine();
  if (policy == Recompute::Elementwise) {
    scope_ = std::make_shared<OpenRegion>(std::make_unique<ElementwiseFactory>(), false);
    return;
  }
  const bool outermost = decisions().values == nullptr;
  scope_ =
      std::make_shared<OpenRegion>(std::make_unique<DroppingFactory>(make_frame(inputs, std::move(rerun))), outermost);
}

bool recomputing() { return decisions().replaying; }

Tensor decide_once(const std::function<Tensor()>& f) {
  Decisions& current = decisions();
  if (current.values == nullptr) return f();
  if (!current.replaying) current.values->push_back(f().detach());
  TORCH_CHECK(current.next < current.values->size(),
              "checkpoint: the recomputation takes more decisions than the forward pass did");
  return (*current.values)[current.next++];
}

Tensor run_layers(const Tensor& x, int64_t num_layers, const LayerPolicy& policy,
                  const std::function<Tensor(int64_t, const Tensor&)>& layer) {
  const auto run = [layer](int64_t first, int64_t end, Tensor y) {
    for (int64_t i = first; i < end; ++i) y = layer(i, y);
    return y;
  };
  if (policy.recompute != Recompute::Full) {
    return checkpoint([=](const std::vector<Tensor>& in) { return run(0, num_layers, in[0]); }, {x}, policy.recompute);
  }
  Tensor y = x;
  for (int64_t first = 0; first < num_layers;) {
    const int64_t end = std::min(first + policy.layers_per_segment, num_layers);
    const bool kept = end == num_layers || first >= policy.num_recomputed;
    y = checkpoint([=](const std::vector<Tensor>& in) { return run(first, end, in[0]); }, {y},
                   kept ? Recompute::None : Recompute::Full);
    first = end;
  }
  return y;
}

bool keeps_products_only() { return innermost_elementwise() != nullptr; }

void recompute_on_demand(const Tensor& y, std::function<Tensor()> again) {
  ElementwiseFactory* region = innermost_elementwise();
  if (region != nullptr) region->add(y, std::move(again));
}

}  // namespace lathe::nn
