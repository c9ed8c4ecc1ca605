#include "lathe/nn/moe_bank.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <utility>

#include "lathe/nn/gemm.h"
#include "lathe/nn/moe_kernels.h"

namespace lathe::nn {
namespace {

// T tokens, D model width, F hidden width, E experts, A assignments, R rank

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kAddedRowsPerTask = 16;
constexpr size_t kInput = BankPass::kInput, kGates = BankPass::kGates, kUp = BankPass::kUp, kDown = BankPass::kDown;

// One expert's part of the matrices of an update.
Tensor part_of_A(const Tensor& A, const BankUpdate& update, int64_t expert) {
  return update.of_all ? A.narrow(0, expert * update.rank, update.rank) : A;
}
Tensor part_of_B(const Tensor& B, const BankUpdate& update, int64_t expert) {
  return update.of_all ? B.view({update.num_rows, update.rank, -1}).select(2, expert) : B;
}

// One expert's part of the tensors of a list.
class Expert {
 public:
  Expert(const BankPass& pass, const variable_list& tensors, int64_t index)
      : pass_(pass),
        tensors_(tensors),
        index_(index),
        first_row(pass.groups.offsets[static_cast<size_t>(index)]),
        num_rows(pass.groups.offsets[static_cast<size_t>(index) + 1] - first_row) {}

  const std::vector<BankUpdate>& updates() const { return pass_.updates[static_cast<size_t>(index_)]; }
  // In the type of x.
  Tensor A(const BankUpdate& update) const { return in_type(part_of_A(tensors_[update.A].detach(), update, index_)); }
  Tensor B(const BankUpdate& update) const {
    return in_type(part_of_B(tensors_[update.B].detach(), update, index_)).contiguous();
  }
  Tensor bias(int place) const { return place < 0 ? Tensor() : matrix(static_cast<size_t>(place)); }
  Tensor rows_of(const Tensor& sorted) const { return sorted.narrow(0, first_row, num_rows); }
  void gather(const Tensor& x_TD, Tensor out) const {
    at::index_select_out(out, x_TD, 0, rows_of(pass_.groups.token_A));
  }
  int64_t mask_place(int64_t columns) const { return first_row * columns; }

  // out = x Wᵀ of one projection, updates included.
  void product(bool of_down, const Tensor& x, const Tensor& out) const {
    if (const LinearBase* layer = frozen(of_down)) {
      layer->frozen_product(x, out);
    } else {
      gemm_out(out, x, matrix(of_down ? kDown : kUp).t());
    }
    for (const BankUpdate& update : updates()) {
      if (update.of_down != of_down) continue;
      gemm_add(out.narrow(1, update.first_row, update.num_rows), gemm(dropout(x, update.dropout), A(update).t()),
               B(update).t(), update.scaling);
    }
  }
  // dx = dy W.
  void input_gradient(bool of_down, const Tensor& dy, Tensor dx) const {
    if (const LinearBase* layer = frozen(of_down)) {
      layer->frozen_input_gradient(dy, dx, /*accumulate=*/false);
    } else {
      gemm_out(dx, dy, matrix(of_down ? kDown : kUp));
    }
    for (const BankUpdate& update : updates()) {
      if (update.of_down != of_down) continue;
      const Tensor du = gemm(dy.narrow(1, update.first_row, update.num_rows), B(update));
      if (update.dropout.p == 0) {
        gemm_add(dx, du, A(update), update.scaling);
      } else {
        dx.add_(dropout(gemm(du, A(update)), update.dropout), update.scaling);
      }
    }
  }

 private:
  Tensor in_type(const Tensor& tensor) const { return tensor.to(tensors_[kInput].scalar_type()); }
  Tensor matrix(size_t place) const { return in_type(tensors_[place].detach().select(0, index_)); }
  const LinearBase* frozen(bool of_down) const {
    const auto& layers = of_down ? pass_.frozen_down : pass_.frozen_up;
    return layers.empty() ? nullptr : layers[static_cast<size_t>(index_)].get();
  }

  const BankPass& pass_;
  const variable_list& tensors_;
  int64_t index_;

 public:
  int64_t first_row, num_rows;
};

// Room for the rows of one expert at a time.
class Panels {
 public:
  Panels(const BankPass& pass, const Tensor& x_TD)
      : rows_(at::empty({pass.groups.most_rows(), x_TD.size(1)}, x_TD.options())),
        hidden_(at::empty({pass.groups.most_rows(), pass.hidden}, x_TD.options())) {}
  Tensor rows(int64_t count) const { return rows_.narrow(0, 0, count); }
  Tensor hidden(int64_t count) const { return hidden_.narrow(0, 0, count); }

 private:
  Tensor rows_, hidden_;
};

// Frees what a saved tensor holds before the graph lets go of it.
void release(const Tensor& saved) {
  saved.storage().set_nbytes(0);
  saved.storage().set_data_ptr_noswap(at::DataPtr(nullptr, saved.device()));
}

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

// The gradients of a pass's tensors, filled expert by expert.
class BankGradients {
 public:
  // h: the first product of the sorted rows, ours to use up where it is `donated`.
  BankGradients(const BankPass& pass, const variable_list& tensors, const std::vector<bool>& wanted, Tensor h,
                bool donated)
      : pass_(pass), tensors_(tensors), panels_(pass, tensors[kInput]), h_(std::move(h)), in_place_(donated) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (!wanted[i]) {
        grads.emplace_back();
      } else if (i == kInput || i == kGates) {
        grads.push_back(at::zeros(tensors[i].sizes(), tensors[i].options()));
      } else {
        grads.push_back(at::empty(tensors[i].sizes(), tensors[i].options()));
        if (i == kUp && donated && fits_behind_gradients()) move_into(grads.back());
      }
    }
  }

  void add_expert(int64_t index, const Tensor& gates, const Tensor& dy_TD) {
    const Expert expert(pass_, tensors_, index);
    if (expert.num_rows == 0) return add_idle_expert(expert, index);
    const Tensor rows = panels_.rows(expert.num_rows), hidden = panels_.hidden(expert.num_rows);
    const Tensor gate = expert.rows_of(gates), product = expert.rows_of(h_),
                 dh = in_place_ ? product : at::empty(product.sizes(), product.options());
    expert.gather(dy_TD, rows);
    expert.input_gradient(true, rows, hidden);
    const auto back = pass_.activation.backward(product, expert.bias(pass_.up_bias), gate,
                                                expert.mask_place(pass_.hidden), hidden, dh);
    add_weight_gradients(expert, index, true, back.y, rows);
    Tensor dgate = back.dscale;
    if (pass_.down_bias >= 0) {
      dgate = dgate + at::mv(rows, expert.bias(pass_.down_bias));
      set(pass_.down_bias, index, [&] { return at::mv(rows.t(), gate); });
    }
    set(pass_.up_bias, index, [&] { return dh.sum(0); });
    if (grads[kGates].defined()) grads[kGates].index_copy_(0, expert.rows_of(pass_.groups.order_A), dgate);
    if (needs_up_input()) {
      expert.gather(tensors_[kInput], rows);
      add_weight_gradients(expert, index, false, rows, dh);
    }
    if (!grads[kInput].defined()) return;
    expert.input_gradient(false, dh, rows);
    add_rows(rows, expert.rows_of(pass_.groups.token_A), grads[kInput]);
  }

  variable_list grads;

 private:
  // Whether h finds room at the end of the gradient of its weight [E, columns of h, D], so that no expert's gradient
  // reaches the rows of the experts after it; where it would fill more than half, loads decide too often.
  bool fits_behind_gradients() const {
    const int64_t width = tensors_[kInput].size(1), room = pass_.num_experts * width, first = room - h_.size(0);
    if (grads[kUp].scalar_type() != h_.scalar_type() || first < h_.size(0)) return false;
    for (int64_t e = 0; e < pass_.num_experts; ++e) {
      if ((e + 1) * width > first + pass_.groups.offsets[static_cast<size_t>(e) + 1]) return false;
    }
    return true;
  }

  void move_into(const Tensor& grad) {
    const Tensor rows = grad.view({-1, h_.size(1)}), room = rows.narrow(0, rows.size(0) - h_.size(0), h_.size(0));
    room.copy_(h_);
    release(std::exchange(h_, room));
    in_place_ = false;
  }

  void add_idle_expert(const Expert& expert, int64_t index) {
    for (const int place : {static_cast<int>(kUp), static_cast<int>(kDown), pass_.up_bias, pass_.down_bias}) {
      if (place >= 0 && grads[static_cast<size_t>(place)].defined())
        grads[static_cast<size_t>(place)].select(0, index).zero_();
    }
    for (const BankUpdate& update : expert.updates()) {
      if (!grads[update.A].defined()) continue;
      part_of_A(grads[update.A], update, index).zero_();
      part_of_B(grads[update.B], update, index).zero_();
    }
  }

  bool needs_up_input() const {
    if (grads[kUp].defined()) return true;
    for (const auto& updates : pass_.updates) {
      for (const BankUpdate& update : updates) {
        if (!update.of_down && grads[update.A].defined()) return true;
      }
    }
    return false;
  }

  template <typename F>
  void set(int place, int64_t index, const F& value) {
    if (place >= 0 && grads[static_cast<size_t>(place)].defined())
      grads[static_cast<size_t>(place)].select(0, index).copy_(value());
  }

  // Of one projection y = x (W + updates)ᵀ of one expert.
  void add_weight_gradients(const Expert& expert, int64_t index, bool of_down, const Tensor& x, const Tensor& dy) {
    if (const Tensor& grad = grads[of_down ? kDown : kUp]; grad.defined()) {
      Tensor out = grad.select(0, index);
      if (out.scalar_type() == x.scalar_type()) {
        gemm_out(out, dy.t(), x);
      } else {
        out.copy_(gemm(dy.t(), x));
      }
    }
    for (const BankUpdate& update : expert.updates()) {
      if (update.of_down != of_down || !grads[update.A].defined()) continue;
      const Tensor part = dy.narrow(1, update.first_row, update.num_rows), input = dropout(x, update.dropout);
      const Tensor down = gemm(input, expert.A(update).t()), back = gemm(part, expert.B(update));
      part_of_B(grads[update.B], update, index).copy_(gemm(part.t(), down).mul_(update.scaling));
      part_of_A(grads[update.A], update, index).copy_(gemm(back.t(), input).mul_(update.scaling));
    }
  }

  const BankPass& pass_;
  const variable_list& tensors_;
  Panels panels_;
  Tensor h_;
  bool in_place_;
};

struct BankFunction : torch::autograd::Function<BankFunction> {
  static Tensor forward(AutogradContext* ctx, at::TensorList inputs, const c10::intrusive_ptr<BankPass>& pass) {
    variable_list tensors = inputs.vec();
    const Tensor& x_TD = tensors[kInput];
    const Tensor gates = at::index_select(tensors[kGates], 0, pass->groups.order_A).to(x_TD.scalar_type());
    const int64_t kept_rows = pass->keeps ? pass->groups.num_rows() : pass->groups.most_rows();
    const Tensor h = at::empty({kept_rows, pass->up_rows}, x_TD.options());
    Tensor y_TD = at::zeros(x_TD.sizes(), x_TD.options());
    const Panels panels(*pass, x_TD);
    for (int64_t e = 0; e < pass->num_experts; ++e) {
      const Expert expert(*pass, tensors, e);
      if (expert.num_rows == 0) continue;
      const Tensor gate = expert.rows_of(gates), rows = panels.rows(expert.num_rows),
                   act = panels.hidden(expert.num_rows),
                   product = pass->keeps ? expert.rows_of(h) : h.narrow(0, 0, expert.num_rows);
      expert.gather(x_TD, rows);
      expert.product(false, rows, product);
      pass->activation.forward(product, expert.bias(pass->up_bias), gate, expert.mask_place(pass->hidden), act);
      expert.product(true, act, rows);
      if (pass->down_bias >= 0) Tensor(rows).addr_(gate, expert.bias(pass->down_bias));
      add_rows(rows, expert.rows_of(pass->groups.token_A), y_TD);
    }
    if (!pass->keeps) return y_TD;
    ctx->saved_data["pass"] = c10::IValue::make_capsule(pass);
    // Under checkpoint() they go with the others and come again.
    tensors.insert(tensors.end(),
                   {std::exchange(pass->groups.order_A, {}), std::exchange(pass->groups.token_A, {}), gates, h});
    ctx->save_for_backward(std::move(tensors));
    return y_TD;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list tensors = ctx->get_saved_variables();
    const auto pass = c10::static_intrusive_pointer_cast<BankPass>(ctx->saved_data["pass"].toCapsule());
    const size_t num_inputs = tensors.size() - 4;
    pass->groups.order_A = tensors[num_inputs];
    pass->groups.token_A = tensors[num_inputs + 1];
    const Tensor gates = tensors[num_inputs + 2], h = tensors[num_inputs + 3];
    tensors.resize(num_inputs);
    std::vector<bool> wanted;
    for (size_t i = 0; i < tensors.size(); ++i) wanted.push_back(ctx->needs_input_grad(i));
    BankGradients result(*pass, tensors, wanted, h, !torch::autograd::get_current_graph_task_keep_graph());
    for (int64_t e = 0; e < pass->num_experts; ++e) result.add_expert(e, gates, grads[0]);
    result.grads.emplace_back();  // the pass
    return std::move(result.grads);
  }
};

}  // namespace

Tensor run_bank(const std::vector<Tensor>& tensors, const c10::intrusive_ptr<BankPass>& pass) {
  pass->keeps = at::GradMode::is_enabled() && torch::autograd::any_variable_requires_grad(tensors);
  return BankFunction::apply(at::TensorList(tensors), pass);
}

}  // namespace lathe::nn
