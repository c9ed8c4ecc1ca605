#include "lathe/nn/lora.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/init.h>

#include <cmath>
#include <utility>

#include "lathe/nn/gemm.h"

namespace lathe::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// N rows, D in_features, R rank

// One layer of a joint product: its frozen map and, when an adapter is active, where A and B stand in the list of
// adapter tensors.
struct JointPart {
  std::shared_ptr<LinearBase> frozen;
  bool adapted = false;
  double scaling = 0;
  kernels::Dropout dropout;
};

struct JointPlan : torch::CustomClassHolder {
  std::vector<JointPart> parts;
  bool add_bias = false;

  int64_t out_features() const {
    int64_t sum = 0;
    for (const JointPart& part : parts) sum += part.frozen->out_features();
    return sum;
  }
};

Tensor adapter_input(const Tensor& x_ND, const JointPart& part, const Tensor& lora_A) {
  return dropout(x_ND.to(lora_A.scalar_type()), part.dropout);
}

// x [N, D], lora_A_0, lora_B_0, lora_A_1, ... -> [y_0 | y_1 | ...]. Saves x, the adapters and each dropout(x) Aᵀ.
struct JointProduct : torch::autograd::Function<JointProduct> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_ND, at::TensorList adapters,
                        const c10::intrusive_ptr<JointPlan>& plan) {
    Tensor y = at::empty({x_ND.size(0), plan->out_features()}, x_ND.options());
    variable_list saved = {x_ND};
    int64_t column = 0;
    size_t adapter = 0;
    for (const JointPart& part : plan->parts) {
      Tensor slice = y.narrow(1, column, part.frozen->out_features());
      column += part.frozen->out_features();
      part.frozen->frozen_product(x_ND, slice);
      if (plan->add_bias && part.frozen->bias().defined()) slice.add_(part.frozen->bias());
      if (!part.adapted) continue;
      const Tensor &lora_A = adapters[adapter], &lora_B = adapters[adapter + 1];
      adapter += 2;
      const Tensor u_NR = gemm(adapter_input(x_ND, part, lora_A), lora_A.t());
      if (slice.scalar_type() == u_NR.scalar_type()) {
        gemm_add(slice, u_NR, lora_B.t(), part.scaling);
      } else {
        slice.add_(gemm(u_NR, lora_B.t()), part.scaling);
      }
      saved.insert(saved.end(), {lora_A, lora_B, u_NR});
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto plan = c10::static_intrusive_pointer_cast<JointPlan>(ctx->saved_data["plan"].toCapsule());
    const Tensor &grad = grads[0], &x_ND = saved[0];
    Tensor dx;
    if (ctx->needs_input_grad(0)) dx = at::empty(x_ND.sizes(), x_ND.options());
    variable_list result = {Tensor()};
    int64_t column = 0;
    size_t next = 1;
    for (const JointPart& part : plan->parts) {
      const Tensor grad_part = grad.narrow(1, column, part.frozen->out_features());
      if (dx.defined()) part.frozen->frozen_input_gradient(grad_part, dx, column > 0);
      column += part.frozen->out_features();
      if (!part.adapted) continue;
      const Tensor &lora_A = saved[next], &lora_B = saved[next + 1], &u_NR = saved[next + 2];
      next += 3;
      const Tensor grad_adapter = grad_part.to(lora_B.scalar_type());
      const Tensor du_NR = gemm(grad_adapter, lora_B).mul_(part.scaling);
      result.push_back(gemm(du_NR.t(), adapter_input(x_ND, part, lora_A)));
      result.push_back(gemm(grad_adapter.t(), u_NR).mul_(part.scaling));
      if (dx.defined()) add_adapter_gradient(dx, du_NR, lora_A, part.dropout);
    }
    result[0] = dx;
    result.emplace_back();  // the plan
    return result;
  }

 private:
  static void add_adapter_gradient(Tensor& dx, const Tensor& du_NR, const Tensor& lora_A, kernels::Dropout mask) {
    if (mask.p == 0 && dx.scalar_type() == lora_A.scalar_type()) {
      gemm_add(dx, du_NR, lora_A);
    } else {
      dx.add_(dropout(gemm(du_NR, lora_A), mask));
    }
  }
};

bool is_frozen(const LinearBase& linear) {
  for (const Tensor& parameter : linear.parameters()) {
    if (parameter.requires_grad()) return false;
  }
  return true;
}

// The part of `linear` in a joint product, its adapter's tensors appended; false when its own weights train.
bool add_part(LinearBase& linear, JointPlan& plan, variable_list& adapters) {
  auto* lora = dynamic_cast<LoRALinearImpl*>(&linear);
  JointPart part;
  if (lora == nullptr) {
    part.frozen = std::static_pointer_cast<LinearBase>(linear.shared_from_this());
  } else {
    part.frozen = lora->base_layer;
    if (lora->active()) {
      part.adapted = true;
      part.scaling = lora->scaling();
      part.dropout = lora->next_dropout();
      adapters.insert(adapters.end(), {lora->lora_A->weight, lora->lora_B->weight});
    }
  }
  if (!is_frozen(*part.frozen)) return false;
  plan.parts.push_back(std::move(part));
  return true;
}

Tensor apply_plan(const Tensor& x, c10::intrusive_ptr<JointPlan> plan, const variable_list& adapters) {
  if (x.dim() == 2) return JointProduct::apply(x, at::TensorList(adapters), plan);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = plan->out_features();
  const Tensor y = JointProduct::apply(x.reshape({-1, x.size(-1)}), at::TensorList(adapters), plan);
  return at::_unsafe_view(y, shape);  // what is added in place to a view copies its gradient
}

}  // namespace

double LoRALinearOptions::scaling() const {
  const auto size = static_cast<double>(rank());
  return alpha() / (rank_stabilised() ? std::sqrt(size) : size);
}

MatrixImpl::MatrixImpl(int64_t rows, int64_t columns) {
  weight = register_parameter("weight", at::zeros({rows, columns}));
}

LoRALinearImpl::LoRALinearImpl(std::shared_ptr<LinearBase> base, LoRALinearOptions options_)
    : LinearBase("LoRALinear", base->in_features(), base->out_features()), options(options_) {
  TORCH_CHECK_VALUE(options.rank() >= 1, "LoRALinear: expected rank >= 1, got ", options.rank());
  TORCH_CHECK_VALUE(options.alpha() > 0 && std::isfinite(options.alpha()), "LoRALinear: expected alpha > 0, got ",
                    options.alpha());
  TORCH_CHECK_VALUE(options.dropout() >= 0 && options.dropout() < 1, "LoRALinear: expected dropout in [0, 1), got ",
                    options.dropout());
  base_layer = register_module("base_layer", std::move(base));
  for (Tensor& parameter : base_layer->parameters()) parameter.requires_grad_(false);
  lora_A = register_module("lora_A", Matrix(options.rank(), in_features()));
  lora_B = register_module("lora_B", Matrix(out_features(), options.rank()));
  reset_parameters();
}

LoRALinearImpl::LoRALinearImpl(const torch::nn::Linear& base, LoRALinearOptions options_)
    : LoRALinearImpl(Linear(base).ptr(), options_) {}

void LoRALinearImpl::reset_parameters() {
  const at::NoGradGuard no_grad;
  torch::nn::init::kaiming_uniform_(lora_A->weight, std::sqrt(5.0));
  lora_B->weight.zero_();
}

Tensor LoRALinearImpl::update() const {
  const at::NoGradGuard no_grad;
  return gemm(lora_B->weight, lora_A->weight).mul_(scaling());
}

Tensor LoRALinearImpl::product(const Tensor& x) {
  check_input(x);
  if (!active()) return base_layer->product(x);
  auto plan = c10::make_intrusive<JointPlan>();
  variable_list adapters;
  TORCH_CHECK_VALUE(add_part(*this, *plan, adapters),
                    "LoRALinear: expected a frozen base_layer, got one that requires a gradient");
  return apply_plan(x, std::move(plan), adapters);
}

void LoRALinearImpl::frozen_product(const Tensor& x, Tensor out) const {
  base_layer->frozen_product(x, out);
  if (!active()) return;
  const at::NoGradGuard no_grad;
  const Tensor u_NR = gemm(x.to(lora_A->weight.scalar_type()), lora_A->weight.t());
  out.add_(gemm(u_NR, lora_B->weight.t()), scaling());
}

void LoRALinearImpl::frozen_input_gradient(const Tensor& grad, Tensor dx, bool accumulate) const {
  base_layer->frozen_input_gradient(grad, dx, accumulate);
  if (!active()) return;
  const at::NoGradGuard no_grad;
  const Tensor du_NR = gemm(grad.to(lora_B->weight.scalar_type()), lora_B->weight);
  dx.add_(gemm(du_NR, lora_A->weight), scaling());
}

Tensor LoRALinearImpl::dense_weight() const {
  const Tensor base = base_layer->dense_weight();
  return active() ? (base.to(at::kFloat) + update()).to(base.scalar_type()) : base;
}

void LoRALinearImpl::add_to_base(double factor) {
  auto dense = std::dynamic_pointer_cast<LinearImpl>(base_layer);
  TORCH_CHECK_VALUE(dense != nullptr, "LoRALinear: expected a dense base_layer to merge into, got ",
                    base_layer->name());
  const at::NoGradGuard no_grad;
  const Tensor sum = dense->weight.to(lora_A->weight.scalar_type()).add(update(), factor);
  dense->weight.set_data(sum.to(dense->weight.scalar_type()));
}

void LoRALinearImpl::merge() {
  TORCH_CHECK_VALUE(!merged_, "LoRALinear: expected an unmerged adapter, got a merged one");
  add_to_base(1);
  merged_ = true;
}

void LoRALinearImpl::unmerge() {
  TORCH_CHECK_VALUE(merged_, "LoRALinear: expected a merged adapter, got an unmerged one");
  add_to_base(-1);
  merged_ = false;
}

kernels::Dropout LoRALinearImpl::next_dropout() const {
  if (!is_training() || options.dropout() == 0) return {};
  return {DropoutStream::next_key(), static_cast<float>(options.dropout())};
}

void LoRALinearImpl::pretty_print(std::ostream& stream) const {
  stream << "lathe::nn::LoRALinear(in_features=" << in_features() << ", out_features=" << out_features()
         << ", rank=" << options.rank() << ", scaling=" << scaling() << ", dropout=" << options.dropout()
         << (merged_ ? ", merged" : "") << (enabled_ ? "" : ", disabled") << ")";
}

Tensor joint_forward(const Tensor& x, const std::vector<LinearBase*>& linears) {
  auto plan = c10::make_intrusive<JointPlan>();
  plan->add_bias = true;
  variable_list adapters;
  bool frozen = true;
  for (LinearBase* linear : linears) frozen = frozen && add_part(*linear, *plan, adapters);
  if (frozen) return apply_plan(x, std::move(plan), adapters);
  std::vector<Tensor> outputs;
  for (LinearBase* linear : linears) outputs.push_back(linear->forward(x));
  return at::cat(outputs, -1);
}

}  // namespace lathe::nn
