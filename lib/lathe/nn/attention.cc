#include "lathe/nn/attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "lathe/nn/dropout.h"
#include "lathe/nn/gemm.h"

namespace lathe::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// B samples, H heads, W model width, d head width, T rows of a sample

// Rows of scores begin 16 elements' multiples apart: the masked store that ends a row must not stall the loads of the
// next.
int64_t score_stride(int64_t num_keys) { return (num_keys + 15) / 16 * 16; }

struct AttentionPlan : torch::CustomClassHolder {
  RowOffsets query_rows;
  RowOffsets key_rows;
  AttentionOptions options;
  int64_t width = 0;

  int64_t num_samples() const { return static_cast<int64_t>(query_rows->size()) - 1; }
  int64_t head_width() const { return width / options.num_heads; }
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(head_width())); }
  int64_t longest(const RowOffsets& rows) const {
    int64_t most = 0;
    for (size_t b = 0; b + 1 < rows->size(); ++b) most = std::max(most, (*rows)[b + 1] - (*rows)[b]);
    return most;
  }
  // Room for the scores of one head of the longest sample.
  size_t score_capacity() const;
  // The place of the first score of a head of a sample in a [B, H, longest, longest] tensor: what dropout counts by.
  int64_t first_score(int64_t task) const { return task * longest(query_rows) * longest(key_rows); }
};

size_t AttentionPlan::score_capacity() const {
  return static_cast<size_t>(longest(query_rows) * score_stride(longest(key_rows)));
}

// One head of one sample inside the packed tensors.
struct HeadRange {
  int64_t first_query, num_queries, first_key, num_keys, column;

  HeadRange(const AttentionPlan& plan, int64_t task) {
    const auto sample = static_cast<size_t>(task / plan.options.num_heads);
    first_query = (*plan.query_rows)[sample];
    num_queries = (*plan.query_rows)[sample + 1] - first_query;
    first_key = (*plan.key_rows)[sample];
    num_keys = (*plan.key_rows)[sample + 1] - first_key;
    column = (task % plan.options.num_heads) * plan.head_width();
  }
};

float* at_row(const Tensor& tensor, int64_t row, int64_t column) {
  return tensor.data_ptr<float>() + row * tensor.stride(0) + column;
}

// The thirds (or the query and the halves) of the inputs or of their gradients.
struct QueryKeyValue {
  Tensor q, k, v;

  QueryKeyValue(at::TensorList inputs, int64_t width)
      : q(inputs[0].narrow(1, 0, width)),
        k(inputs.size() == 2 ? inputs[1].narrow(1, 0, width) : inputs[0].narrow(1, width, width)),
        v(inputs.size() == 2 ? inputs[1].narrow(1, width, width) : inputs[0].narrow(1, 2 * width, width)) {}
};

// What a profile is told of.
std::vector<c10::IValue> all_of(at::TensorList first, at::TensorList second, at::TensorList third = {}) {
  std::vector<c10::IValue> tensors;
  for (const at::TensorList list : {first, second, third}) tensors.insert(tensors.end(), list.begin(), list.end());
  return tensors;
}

// inputs: qkv [N, 3 W], or q [M, W] and kv [N, 2 W]. Saves them, the output and the log-sum-exp of each row of scores.
struct FusedAttention : torch::autograd::Function<FusedAttention> {
  static Tensor forward(AutogradContext* ctx, at::TensorList inputs, const c10::intrusive_ptr<AttentionPlan>& plan) {
    const Tensor& first = inputs[0];
    const QueryKeyValue in(inputs, plan->width);
    const int64_t num_heads = plan->options.num_heads, d = plan->head_width();
    Tensor output = at::empty({first.size(0), plan->width}, first.options());
    Tensor lse = at::empty({num_heads, first.size(0)}, first.options());
    const auto scale = static_cast<float>(plan->scale());
    const size_t capacity = plan->score_capacity();
    const auto stride = plan->first_score(1);
    RECORD_FUNCTION("lathe::attention", all_of(inputs, {output}));
    at::parallel_for(0, plan->num_samples() * num_heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scores(capacity);
      for (int64_t task = begin; task < end; ++task) {
        const HeadRange r(*plan, task);
        float* out = at_row(output, r.first_query, r.column);
        const int64_t ld = score_stride(r.num_keys);
        sgemm({r.num_queries, r.num_keys, d, scale, 0}, {at_row(in.q, r.first_query, r.column), in.q.stride(0), false},
              {at_row(in.k, r.first_key, r.column), in.k.stride(0), true}, scores.data(), ld);
        kernels::softmax_forward(scores.data(), at_row(lse, task % num_heads, r.first_query), r.num_queries, r.num_keys,
                                 ld, static_cast<uint64_t>(task * stride), plan->options.dropout);
        sgemm({r.num_queries, d, r.num_keys, 1, 0}, {scores.data(), ld, false},
              {at_row(in.v, r.first_key, r.column), in.v.stride(0), false}, out, plan->width);
      }
    });
    variable_list saved = {output, lse};
    saved.insert(saved.end(), inputs.begin(), inputs.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["plan"] = c10::IValue::make_capsule(plan);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto plan = c10::static_intrusive_pointer_cast<AttentionPlan>(ctx->saved_data["plan"].toCapsule());
    const Tensor &output = saved[0], &lse = saved[1];
    const at::TensorList inputs = at::TensorList(saved).slice(2);
    const QueryKeyValue in(inputs, plan->width);
    // One buffer in each input's own layout: the joint product that made it reads its gradient without a copy.
    variable_list gradients;
    for (const Tensor& input : inputs) gradients.push_back(at::empty(input.sizes(), input.options()));
    const QueryKeyValue out(gradients, plan->width);
    if (!plan->options.key_gradient) out.k.zero_();
    const Tensor grad = grads[0].contiguous();
    const size_t capacity = plan->score_capacity();
    RECORD_FUNCTION("lathe::attention_backward", all_of(saved, gradients, {grad}));
    at::parallel_for(0, plan->num_samples() * plan->options.num_heads, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scores(capacity), dscores(capacity),
          delta(static_cast<size_t>(plan->longest(plan->query_rows)));
      for (int64_t task = begin; task < end; ++task) {
        head_backward(*plan, task, in, out, {output, lse, grad}, scores.data(), dscores.data(), delta.data());
      }
    });
    gradients.emplace_back();  // the plan
    return gradients;
  }

 private:
  struct Saved {
    const Tensor &output, &lse, &grad;
  };

  static void head_backward(const AttentionPlan& plan, int64_t task, const QueryKeyValue& in, const QueryKeyValue& out,
                            Saved saved, float* scores, float* dscores, float* delta) {
    const HeadRange r(plan, task);
    const int64_t d = plan.head_width(), heads = plan.options.num_heads, ld = score_stride(r.num_keys);
    const auto scale = static_cast<float>(plan.scale());
    const float* q = at_row(in.q, r.first_query, r.column);
    const float* k = at_row(in.k, r.first_key, r.column);
    const float* v = at_row(in.v, r.first_key, r.column);
    const float* grad = at_row(saved.grad, r.first_query, r.column);
    // rowsum(dO * O) equals rowsum(dP * P), also with dropout.
    kernels::row_dots(at_row(saved.output, r.first_query, r.column), plan.width, grad, plan.width, delta, r.num_queries,
                      d);
    sgemm({r.num_queries, r.num_keys, d, scale, 0}, {q, in.q.stride(0), false}, {k, in.k.stride(0), true}, scores, ld);
    sgemm({r.num_queries, r.num_keys, d, 1, 0}, {grad, plan.width, false}, {v, in.v.stride(0), true}, dscores, ld);
    kernels::softmax_backward(scores, dscores, at_row(saved.lse, task % heads, r.first_query), delta, r.num_queries,
                              r.num_keys, ld, static_cast<uint64_t>(plan.first_score(task)), plan.options.dropout);
    sgemm({r.num_keys, d, r.num_queries, 1, 0}, {scores, ld, true}, {grad, plan.width, false},
          at_row(out.v, r.first_key, r.column), out.v.stride(0));
    sgemm({r.num_queries, d, r.num_keys, scale, 0}, {dscores, ld, false}, {k, in.k.stride(0), false},
          at_row(out.q, r.first_query, r.column), out.q.stride(0));
    if (!plan.options.key_gradient) return;
    sgemm({r.num_keys, d, r.num_queries, scale, 0}, {dscores, ld, true}, {q, in.q.stride(0), false},
          at_row(out.k, r.first_key, r.column), out.k.stride(0));
  }
};

// The same from LibTorch's operators, for every dtype and device: the kernels' oracle.
Tensor composed_attention(at::TensorList inputs, const AttentionPlan& plan) {
  const QueryKeyValue in(inputs, plan.width);
  const int64_t heads = plan.options.num_heads, d = plan.head_width();
  std::vector<Tensor> outputs;
  for (int64_t sample = 0; sample < plan.num_samples(); ++sample) {
    const HeadRange r(plan, sample * heads);
    const auto split = [&](const Tensor& x, int64_t from, int64_t rows) {
      return x.narrow(0, from, rows).reshape({rows, heads, d}).transpose(0, 1);
    };
    const Tensor q = split(in.q, r.first_query, r.num_queries), k = split(in.k, r.first_key, r.num_keys);
    Tensor weights = at::softmax(at::matmul(q, k.transpose(1, 2)) * plan.scale(), -1);
    if (plan.options.dropout.p > 0) {
      std::vector<Tensor> factors;
      for (int64_t head = 0; head < heads; ++head) {
        factors.push_back(dropout_factors({1, r.num_queries, r.num_keys}, plan.options.dropout,
                                          plan.first_score(sample * heads + head), weights.options()));
      }
      weights = weights * at::cat(factors);
    }
    outputs.push_back(
        at::matmul(weights, split(in.v, r.first_key, r.num_keys)).transpose(0, 1).reshape({r.num_queries, plan.width}));
  }
  return outputs.empty() ? at::zeros({0, plan.width}, inputs[0].options()) : at::cat(outputs);
}

Tensor attend(at::TensorList inputs, const c10::intrusive_ptr<AttentionPlan>& plan) {
  const int64_t num_queries = inputs.front().size(0), num_keys = inputs.back().size(0);
  TORCH_CHECK_VALUE(plan->options.num_heads >= 1 && plan->width % plan->options.num_heads == 0,
                    "attention: expected a width that num_heads = ", plan->options.num_heads, " divides, got ",
                    plan->width);
  TORCH_CHECK_VALUE(plan->query_rows->size() == plan->key_rows->size() && plan->query_rows->back() == num_queries &&
                        plan->key_rows->back() == num_keys,
                    "attention: expected offsets that cover ", num_queries, " and ", num_keys, " rows, got ",
                    plan->query_rows->back(), " and ", plan->key_rows->back());
  bool fused = true;
  for (const Tensor& input : inputs) fused = fused && uses_kernels(input) && input.stride(1) == 1;
  return fused ? FusedAttention::apply(inputs, plan) : composed_attention(inputs, *plan);
}

}  // namespace

Tensor self_attention(const Tensor& qkv, const RowOffsets& rows, const AttentionOptions& options) {
  TORCH_CHECK_VALUE(qkv.dim() == 2 && qkv.size(1) % 3 == 0, "self_attention: expected qkv [N, 3 W], got ", qkv.sizes());
  auto plan = c10::make_intrusive<AttentionPlan>();
  plan->query_rows = plan->key_rows = rows;
  plan->options = options;
  plan->width = qkv.size(1) / 3;
  return attend({qkv}, plan);
}

Tensor cross_attention(const Tensor& q, const RowOffsets& query_rows, const Tensor& kv, const RowOffsets& key_rows,
                       const AttentionOptions& options) {
  TORCH_CHECK_VALUE(q.dim() == 2 && kv.dim() == 2 && kv.size(1) == 2 * q.size(1),
                    "cross_attention: expected q [M, W] and kv [N, 2 W], got ", q.sizes(), " and ", kv.sizes());
  auto plan = c10::make_intrusive<AttentionPlan>();
  plan->query_rows = query_rows;
  plan->key_rows = key_rows;
  plan->options = options;
  plan->width = q.size(1);
  return attend({q, kv}, plan);
}

}  // namespace lathe::nn
