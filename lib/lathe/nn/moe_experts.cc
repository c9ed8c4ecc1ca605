#include "lathe/nn/moe_experts.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <utility>

#include "lathe/base/random.h"
#include "lathe/nn/counter_tensors.h"
#include "lathe/nn/gemm.h"
#include "lathe/nn/linear.h"
#include "lathe/nn/moe_activation.h"
#include "lathe/nn/moe_kernels.h"

namespace lathe::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kAddedRowsPerTask = 16;

// What the node knows beside its tensors. Those stand in one list: x, gates, up and down weight, biases, adapters;
// a place of -1 means that there is none.
struct BankPlan : torch::CustomClassHolder {
  struct Update {
    bool of_down;
    int64_t first_row, num_rows;
    double scaling;
    size_t A, B;
  };
  ExpertGroups groups;
  ExpertActivationPass activation;
  int64_t num_experts = 0;
  int up_bias = -1, down_bias = -1;
  std::vector<Update> updates;
};

constexpr size_t kInput = 0, kGates = 1, kUp = 2, kDown = 3;

// One expert's part of the tensors of a list.
class Expert {
 public:
  Expert(const BankPlan& plan, const variable_list& tensors, int64_t index)
      : plan_(plan),
        tensors_(tensors),
        index_(index),
        first_row(plan.groups.offsets[static_cast<size_t>(index)]),
        num_rows(plan.groups.offsets[static_cast<size_t>(index) + 1] - first_row) {}

  // Matrix number `place`, in the type of x.
  Tensor matrix(size_t place) const {
    return tensors_[place].detach().select(0, index_).to(tensors_[kInput].scalar_type());
  }
  Tensor bias(int place) const { return place < 0 ? Tensor() : matrix(static_cast<size_t>(place)); }
  Tensor rows_of(const Tensor& sorted) const { return sorted.narrow(0, first_row, num_rows); }
  Tensor gathered(const Tensor& x_TD) const { return at::index_select(x_TD, 0, rows_of(plan_.groups.token_A)); }
  int64_t mask_place(int64_t columns) const { return first_row * columns; }

  // y += the updates of one projection of x.
  void add_updates(bool of_down, const Tensor& x, const Tensor& y) const {
    for (const BankPlan::Update& update : plan_.updates) {
      if (update.of_down != of_down) continue;
      gemm_add(y.narrow(1, update.first_row, update.num_rows), gemm(x, matrix(update.A).t()), matrix(update.B).t(),
               update.scaling);
    }
  }
  // dx += what the updates send back of dy.
  void add_update_gradients(bool of_down, const Tensor& dy, const Tensor& dx) const {
    for (const BankPlan::Update& update : plan_.updates) {
      if (update.of_down != of_down) continue;
      const Tensor part = dy.narrow(1, update.first_row, update.num_rows);
      gemm_add(dx, gemm(part, matrix(update.B)), matrix(update.A), update.scaling);
    }
  }

 private:
  const BankPlan& plan_;
  const variable_list& tensors_;
  int64_t index_;

 public:
  int64_t first_row, num_rows;
};

void add_rows(const Tensor& rows, const Tensor& index, const Tensor& out) {
  if (!uses_kernels(out)) {
    out.index_add_(0, index, rows);
    return;
  }
  const int64_t columns = out.size(1);
  at::parallel_for(0, rows.size(0), kAddedRowsPerTask, [&](int64_t begin, int64_t end) {
    kernels::add_rows(rows.const_data_ptr<float>() + begin * columns, index.const_data_ptr<int64_t>() + begin,
                      out.data_ptr<float>(), end - begin, columns);
  });
}

// The gradients of a node's tensors, filled expert by expert.
class BankGradients {
 public:
  BankGradients(const BankPlan& plan, const variable_list& tensors, const std::vector<bool>& wanted)
      : plan_(plan), tensors_(tensors) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (!wanted[i]) {
        grads.emplace_back();
      } else if (i == kInput || i == kGates) {
        grads.push_back(at::zeros(tensors[i].sizes(), tensors[i].options()));
      } else {
        grads.push_back(at::empty(tensors[i].sizes(), tensors[i].options()));
      }
    }
  }

  // h: the first product of the sorted rows. dy [T, D].
  void add_expert(int64_t index, const Tensor& h, const Tensor& gates, const Tensor& dy_TD) {
    const Expert expert(plan_, tensors_, index);
    if (expert.num_rows == 0) {
      for (size_t i = kUp; i < grads.size(); ++i) {
        if (grads[i].defined()) grads[i].select(0, index).zero_();
      }
      return;
    }
    const Tensor dy = expert.gathered(dy_TD), gate = expert.rows_of(gates);
    Tensor dact = gemm(dy, expert.matrix(kDown));
    expert.add_update_gradients(true, dy, dact);
    const auto back = plan_.activation.backward(expert.rows_of(h), expert.bias(plan_.up_bias), gate,
                                                expert.mask_place(dact.size(1)), dact);
    add_weight_gradients(true, kDown, index, back.y, dy);
    Tensor dgate = back.dscale;
    if (plan_.down_bias >= 0) {
      dgate = dgate + at::mv(dy, expert.bias(plan_.down_bias));
      set(plan_.down_bias, index, [&] { return at::mv(dy.t(), gate); });
    }
    set(plan_.up_bias, index, [&] { return back.dh.sum(0); });
    if (grads[kGates].defined()) grads[kGates].index_copy_(0, expert.rows_of(plan_.groups.order_A), dgate);
    if (needs_up_input()) add_weight_gradients(false, kUp, index, expert.gathered(tensors_[kInput]), back.dh);
    if (!grads[kInput].defined()) return;
    Tensor dx = gemm(back.dh, expert.matrix(kUp));
    expert.add_update_gradients(false, back.dh, dx);
    add_rows(dx, expert.rows_of(plan_.groups.token_A), grads[kInput]);
  }

  variable_list grads;

 private:
  bool needs_up_input() const {
    bool needed = grads[kUp].defined();
    for (const auto& update : plan_.updates) needed = needed || (!update.of_down && grads[update.A].defined());
    return needed;
  }

  template <typename F>
  void set(int place, int64_t index, const F& value) {
    if (place >= 0 && grads[static_cast<size_t>(place)].defined())
      grads[static_cast<size_t>(place)].select(0, index).copy_(value());
  }

  // Of one projection y = x (W + updates)ᵀ of one expert.
  void add_weight_gradients(bool of_down, size_t place, int64_t index, const Tensor& x, const Tensor& dy) {
    const Expert expert(plan_, tensors_, index);
    if (grads[place].defined()) {
      Tensor out = grads[place].select(0, index);
      if (out.scalar_type() == x.scalar_type()) {
        gemm_out(out, dy.t(), x);
      } else {
        out.copy_(gemm(dy.t(), x));
      }
    }
    for (const auto& update : plan_.updates) {
      if (update.of_down != of_down || !grads[update.A].defined()) continue;
      const Tensor part = dy.narrow(1, update.first_row, update.num_rows);
      const Tensor down = gemm(x, expert.matrix(update.A).t()), back = gemm(part, expert.matrix(update.B));
      grads[update.B].select(0, index).copy_(gemm(part.t(), down).mul_(update.scaling));
      grads[update.A].select(0, index).copy_(gemm(back.t(), x).mul_(update.scaling));
    }
  }

  const BankPlan& plan_;
  const variable_list& tensors_;
};

// Saves its tensors, the sorted gates and the first product of the sorted rows.
struct BankFunction : torch::autograd::Function<BankFunction> {
  static Tensor forward(AutogradContext* ctx, at::TensorList inputs, const c10::intrusive_ptr<BankPlan>& plan) {
    variable_list tensors = inputs.vec();
    const Tensor& x_TD = tensors[kInput];
    const Tensor gates = at::index_select(tensors[kGates], 0, plan->groups.order_A).to(x_TD.scalar_type());
    Tensor h = at::empty({plan->groups.num_rows(), tensors[kUp].size(1)}, x_TD.options());
    Tensor y_TD = at::zeros({x_TD.size(0), tensors[kDown].size(1)}, x_TD.options());
    for (int64_t e = 0; e < plan->num_experts; ++e) {
      const Expert expert(*plan, tensors, e);
      if (expert.num_rows == 0) continue;
      const Tensor x = expert.gathered(x_TD), gate = expert.rows_of(gates);
      Tensor product = expert.rows_of(h);
      gemm_out(product, x, expert.matrix(kUp).t());
      expert.add_updates(false, x, product);
      const Tensor act = plan->activation.forward(product, expert.bias(plan->up_bias), gate,
                                                  expert.mask_place(tensors[kDown].size(2)));
      const Tensor y = gemm(act, expert.matrix(kDown).t());
      expert.add_updates(true, act, y);
      if (plan->down_bias >= 0) y.addr_(gate, expert.bias(plan->down_bias));
      add_rows(y, expert.rows_of(plan->groups.token_A), y_TD);
    }
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    tensors.insert(tensors.end(), {gates, h});
    ctx->save_for_backward(std::move(tensors));
    return y_TD;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list tensors = ctx->get_saved_variables();
    const auto plan = c10::static_intrusive_pointer_cast<BankPlan>(ctx->saved_data["plan"].toCapsule());
    const Tensor h = tensors.back(), gates = tensors[tensors.size() - 2];
    tensors.resize(tensors.size() - 2);
    std::vector<bool> wanted;
    for (size_t i = 0; i < tensors.size(); ++i) wanted.push_back(ctx->needs_input_grad(i));
    const Tensor dy = grads[0].contiguous();
    BankGradients result(*plan, tensors, wanted);
    for (int64_t e = 0; e < plan->num_experts; ++e) result.add_expert(e, h, gates, dy);
    result.grads.emplace_back();  // the plan
    return std::move(result.grads);
  }
};

Tensor uniform_parameter(at::IntArrayRef shape, double bound, uint64_t key) {
  return counter_uniform(shape, key).mul_(2 * bound).sub_(bound).to(at::kFloat);
}

}  // namespace

ExpertBankImpl::ExpertBankImpl(ExpertBankOptions options_) : ExpertBankBase("ExpertBank"), options(options_) {
  const int64_t num_experts = options.num_experts(), width = options.in_features(), hidden = options.hidden_features();
  TORCH_CHECK_VALUE(num_experts >= 1 && width >= 1 && hidden >= 1,
                    "ExpertBank: expected num_experts, in_features and hidden_features >= 1, got ", num_experts, ", ",
                    width, " and ", hidden);
  const bool gated = options.activation() == ExpertActivation::SwiGLU;
  TORCH_CHECK_VALUE(!gated || !options.bias(), "ExpertBank: expected SwiGLU experts without biases");
  up_weight = gated ? register_parameter("gate_up_proj", hollow({num_experts, 2 * hidden, width}))
                    : register_parameter("up_proj", hollow({num_experts, hidden, width}));
  if (options.bias()) up_bias = register_parameter("up_proj_bias", hollow({num_experts, hidden}));
  down_weight = register_parameter("down_proj", hollow({num_experts, width, hidden}));
  if (options.bias()) down_bias = register_parameter("down_proj_bias", hollow({num_experts, width}));
}

void ExpertBankImpl::initialise(uint64_t key) {
  const double up = 1 / std::sqrt(static_cast<double>(options.in_features())),
               down = 1 / std::sqrt(static_cast<double>(options.hidden_features()));
  up_weight.set_data(uniform_parameter(up_weight.sizes(), up, make_key(key, name_key("up"))));
  down_weight.set_data(uniform_parameter(down_weight.sizes(), down, make_key(key, name_key("down"))));
  if (!options.bias()) return;
  up_bias.set_data(uniform_parameter(up_bias.sizes(), up, make_key(key, name_key("up bias"))));
  down_bias.set_data(uniform_parameter(down_bias.sizes(), down, make_key(key, name_key("down bias"))));
}

void ExpertBankImpl::add_lora(const ExpertLoRAOptions& lora, uint64_t key) {
  TORCH_CHECK_VALUE(lora.rank >= 1, "ExpertBank: expected rank >= 1, got ", lora.rank);
  const int64_t hidden = options.hidden_features(), width = options.in_features();
  const bool gated = options.activation() == ExpertActivation::SwiGLU;
  LoRA added{lora.projection, lora.projection == "down_proj", 0, hidden, lora.rank, lora.scaling, {}, {}};
  if (added.of_down) {
    added.num_rows = width;
  } else if (gated && lora.projection == "gate_up_proj") {
    added.num_rows = 2 * hidden;
  } else if (gated && lora.projection == "up_proj") {
    added.first_row = hidden;
  } else {
    TORCH_CHECK_VALUE(lora.projection == (gated ? "gate_proj" : "up_proj"), "ExpertBank: expected a projection of ",
                      gated ? "gate_up_proj, gate_proj, up_proj, down_proj" : "up_proj, down_proj", ", got ",
                      lora.projection);
  }
  for (const LoRA& other : loras_) {
    const bool apart = other.of_down != added.of_down || other.first_row + other.num_rows <= added.first_row ||
                       added.first_row + added.num_rows <= other.first_row;
    TORCH_CHECK_VALUE(apart, "ExpertBank: ", lora.projection, " is adapted already, as ", other.projection);
  }
  for (Tensor& parameter : parameters(/*recurse=*/false)) {
    if (parameter.is_same(up_weight) || parameter.is_same(down_weight) || parameter.is_same(up_bias) ||
        parameter.is_same(down_bias))
      parameter.requires_grad_(false);
  }
  const int64_t in = added.of_down ? hidden : width, num_experts = options.num_experts();
  // kaiming_uniform(a = √5) of [R, in] is U(±1/√in).
  added.A = register_parameter(lora.projection + "_lora_A",
                               uniform_parameter({num_experts, lora.rank, in}, 1 / std::sqrt(static_cast<double>(in)),
                                                 make_key(key, name_key(lora.projection))));
  added.B =
      register_parameter(lora.projection + "_lora_B", at::zeros({num_experts, added.num_rows, lora.rank}, at::kFloat));
  loras_.push_back(std::move(added));
}

Tensor ExpertBankImpl::forward(const Tensor& x_TD, const Routing& routing, kernels::Dropout dropout) {
  TORCH_CHECK_VALUE(x_TD.dim() == 2 && x_TD.size(1) == options.in_features(),
                    "ExpertBank: expected x [T, in_features = ", options.in_features(), "], got ", x_TD.sizes());
  TORCH_CHECK_VALUE(routing.num_tokens == x_TD.size(0) && routing.num_experts == options.num_experts(),
                    "ExpertBank: expected a routing of ", x_TD.size(0), " tokens to ", options.num_experts(),
                    " experts, got one of ", routing.num_tokens, " to ", routing.num_experts);
  auto plan = c10::make_intrusive<BankPlan>();
  plan->groups = ExpertGroups::of(routing);
  plan->activation = {options.activation(), dropout};
  plan->num_experts = options.num_experts();
  variable_list tensors = {x_TD, routing.gate_A, up_weight, down_weight};
  const auto append = [&tensors](const Tensor& tensor) {
    tensors.push_back(tensor);
    return tensors.size() - 1;
  };
  if (options.bias()) {
    plan->up_bias = static_cast<int>(append(up_bias));
    plan->down_bias = static_cast<int>(append(down_bias));
  }
  for (const LoRA& lora : loras_)
    plan->updates.push_back(
        {lora.of_down, lora.first_row, lora.num_rows, lora.scaling, append(lora.A), append(lora.B)});
  return BankFunction::apply(at::TensorList(tensors), plan);
}

}  // namespace lathe::nn
