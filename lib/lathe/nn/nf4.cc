#include "lathe/nn/nf4.h"

#include <ATen/Parallel.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "lathe/nn/gemm.h"
#include "lathe/quant/rows.h"

namespace lathe::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kPanelBytes = int64_t{4} << 20;  // of decoded weights
constexpr int64_t kPanelLines = 480;               // at least: products of 256 take 5 % more
constexpr int64_t kLineGroup = 48;                 // what oneDNN multiplies at once: products of 512 take 2 to 5 % more

struct NF4Reference : torch::CustomClassHolder {
  std::shared_ptr<NF4LinearImpl> linear;
};

// x [N, in_features] -> x Ŵᵀ. Keeps nothing but the layer.
struct NF4Product : torch::autograd::Function<NF4Product> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const c10::intrusive_ptr<NF4Reference>& self) {
    Tensor y = at::empty({x.size(0), self->linear->out_features()}, x.options());
    self->linear->frozen_product(x, y);
    ctx->saved_data["self"] = c10::IValue::make_capsule(self);
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto self = c10::static_intrusive_pointer_cast<NF4Reference>(ctx->saved_data["self"].toCapsule());
    const Tensor grad = grads[0].contiguous();
    const Tensor dx = at::empty({grad.size(0), self->linear->in_features()}, grad.options());
    self->linear->frozen_input_gradient(grad, dx, /*accumulate=*/false);
    return {dx, Tensor()};
  }
};

quant::Float float_of(at::ScalarType type) {
  if (type == at::kBFloat16) return quant::Float::BF16;
  return type == at::kHalf ? quant::Float::F16 : quant::Float::F32;
}

// How Ŵ of a computation in `compute` is decoded: in which type, and whether rounded to bfloat16 in float32.
struct Form {
  at::ScalarType type;
  bool rounded;
};

Form form_of(at::ScalarType compute) {
  const at::ScalarType type = product_type(compute);
  return {type == at::kDouble ? at::kFloat : type, compute == at::kBFloat16 && type == at::kFloat};
}

void decode_range(const quant::Packed& packed, int64_t begin, int64_t end, const Form& form, void* out) {
  if (form.rounded) return quant::dequantize_rounded(packed, begin, end, static_cast<float*>(out));
  quant::dequantize(packed, begin, end, float_of(form.type), out);
}

// out = the rows [first, first + count) of `columns` values each.
void decode_rows(const quant::Packed& packed, int64_t columns, int64_t first, int64_t count, const Form& form,
                 const Tensor& out) {
  auto* data = static_cast<char*>(out.data_ptr());
  const int64_t row_bytes = columns * static_cast<int64_t>(out.element_size());
  at::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
    decode_range(packed, (first + begin) * columns, (first + end) * columns, form, data + begin * row_bytes);
  });
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many of `count` rows, or columns, of `length` values each a panel holds: all panels about as many.
int64_t panel_size(int64_t count, int64_t length, at::ScalarType type) {
  const int64_t fitting = kPanelBytes / (length * static_cast<int64_t>(c10::elementSize(type)));
  const int64_t most = std::max(fitting / kLineGroup * kLineGroup, kPanelLines);
  const int64_t equal = ceil_div(count, ceil_div(count, most));
  return std::min(count, ceil_div(equal, kLineGroup) * kLineGroup);
}

// out = or += a b, in the type of a and b.
void multiply(const Tensor& a, const Tensor& b, Tensor out, bool accumulate) {
  if (out.scalar_type() == a.scalar_type()) {
    accumulate ? gemm_add(out, a, b) : gemm_out(out, a, b);
  } else if (accumulate) {
    out.add_(gemm(a, b));
  } else {
    out.copy_(gemm(a, b));
  }
}

}  // namespace

NF4LinearImpl::NF4LinearImpl(int64_t in_features, int64_t out_features, bool bias, NF4LinearOptions options_)
    : LinearBase("NF4Linear", in_features, out_features), options(options_) {
  TORCH_CHECK_VALUE(quant::is_blocksize(options.blocksize()),
                    "NF4Linear: expected a blocksize of 32, 64, 128, ..., 4096, got ", options.blocksize());
  const auto buffer = [this](const char* name, at::ScalarType type) {
    return register_buffer(name, at::empty({0}, type));
  };
  weight = buffer("weight", at::kByte);
  absmax = buffer("absmax", options.double_quant() ? at::kByte : at::kFloat);
  quant_map = buffer("quant_map", at::kFloat);
  if (options.double_quant()) {
    nested_absmax = buffer("nested_absmax", at::kFloat);
    nested_quant_map = buffer("nested_quant_map", at::kFloat);
  }
  if (bias) bias_ = register_parameter("bias", hollow({out_features}), /*requires_grad=*/false);
}

void NF4LinearImpl::quantize(const Tensor& dense, const std::string& name) {
  const at::ScalarType type = dense.scalar_type();
  TORCH_CHECK_VALUE(dense.sizes() == at::IntArrayRef({out_features(), in_features()}) &&
                        (type == at::kFloat || type == at::kBFloat16 || type == at::kHalf),
                    "NF4Linear: expected ", name, " [", out_features(), ", ", in_features(),
                    "] of float32, bfloat16 or float16, got ", type, " ", dense.sizes());
  const Tensor source = dense.detach().contiguous();
  const int64_t n = source.numel(), blocks = quant::num_blocks(n, options.blocksize());
  const Tensor packed = at::empty({quant::packed_bytes(n), 1}, at::kByte);
  const Tensor scales = at::empty({blocks}, at::kFloat);
  std::atomic<int64_t> bad{n};
  at::parallel_for(0, blocks, 1024, [&](int64_t first, int64_t last) {
    const int64_t place =
        quant::quantize(options.type(), float_of(type), source.const_data_ptr(), n, options.blocksize(), first, last,
                        packed.data_ptr<uint8_t>(), scales.data_ptr<float>());
    for (int64_t known = bad; place >= 0 && place < known && !bad.compare_exchange_weak(known, place);) {
    }
  });
  TORCH_CHECK_VALUE(bad == n, "NF4Linear: ", name, "[", bad / in_features(), ", ", bad % in_features(),
                    "] is not finite: four bits cannot hold it");
  Stored stored;
  stored.weight = packed;
  stored.dtype = type;
  stored.quant_map = at::empty({16}, at::kFloat);
  std::memcpy(stored.quant_map.data_ptr(), quant::code_book(options.type()).data(), 16 * sizeof(float));
  stored.absmax = scales;
  if (options.double_quant()) {
    const auto nested = quant::nest_scales({scales.const_data_ptr<float>(), static_cast<size_t>(blocks)});
    stored.absmax = at::empty({blocks}, at::kByte);
    std::memcpy(stored.absmax.data_ptr(), nested.codes.data(), nested.codes.size());
    stored.nested_absmax = at::empty({static_cast<int64_t>(nested.absmax.size())}, at::kFloat);
    std::memcpy(stored.nested_absmax.data_ptr(), nested.absmax.data(), nested.absmax.size() * sizeof(float));
    stored.nested_quant_map = at::empty({256}, at::kFloat);
    std::memcpy(stored.nested_quant_map.data_ptr(), quant::dynamic_map().data(), 256 * sizeof(float));
    stored.nested_offset = nested.offset;
  }
  set_packed(stored);
}

void NF4LinearImpl::set_packed(const Stored& stored) {
  const int64_t n = in_features() * out_features(), blocks = quant::num_blocks(n, options.blocksize());
  const auto check = [](const Tensor& tensor, int64_t count, const Tensor& buffer, const char* what) {
    TORCH_CHECK_VALUE(tensor.defined() && tensor.scalar_type() == buffer.scalar_type() && tensor.numel() == count &&
                          tensor.is_contiguous(),
                      "NF4Linear: expected ", what, " of ", count, " ", buffer.scalar_type(), " elements, got ",
                      tensor.defined() ? c10::str(tensor.scalar_type(), " ", tensor.sizes()) : "none");
  };
  const bool nested = options.double_quant();
  check(stored.weight, quant::packed_bytes(n), weight, "weight");
  check(stored.absmax, blocks, absmax, "absmax");
  check(stored.quant_map, 16, quant_map, "quant_map");
  if (nested) {
    check(stored.nested_absmax, quant::num_blocks(blocks, quant::kNestedBlocksize), nested_absmax, "nested_absmax");
    check(stored.nested_quant_map, 256, nested_quant_map, "nested_quant_map");
    nested_absmax.set_data(stored.nested_absmax);
    nested_quant_map.set_data(stored.nested_quant_map);
  }
  weight.set_data(stored.weight);
  absmax.set_data(stored.absmax);
  quant_map.set_data(stored.quant_map);
  stored_ = stored;
}

quant::Packed NF4LinearImpl::view() const {
  TORCH_CHECK_VALUE(weight.numel() > 0,
                    "NF4Linear: expected a weight, got none (quantize() or set_packed() gives one)");
  quant::Packed packed;
  packed.codes = weight.const_data_ptr<uint8_t>();
  packed.book = quant_map.const_data_ptr<float>();
  packed.blocksize = options.blocksize();
  if (options.double_quant()) {
    packed.scales.codes = absmax.const_data_ptr<uint8_t>();
    packed.scales.nested_absmax = nested_absmax.const_data_ptr<float>();
    packed.scales.map = nested_quant_map.const_data_ptr<float>();
    packed.scales.offset = stored_.nested_offset;
  } else {
    packed.scales.absmax = absmax.const_data_ptr<float>();
  }
  return packed;
}

at::ScalarType NF4LinearImpl::compute_type(const Tensor& x) const {
  return options.compute() == at::kFloat ? x.scalar_type() : options.compute();
}

void NF4LinearImpl::decode(int64_t first, int64_t count, const Tensor& out) const {
  decode_rows(view(), in_features(), first, count, {out.scalar_type(), /*rounded=*/false}, out);
}

Tensor NF4LinearImpl::row_panel(int64_t first, int64_t count, at::ScalarType compute) const {
  const Form form = form_of(compute);
  const Tensor values = at::empty({count, in_features()}, form.type);
  decode_rows(view(), in_features(), first, count, form, values);
  return values.to(product_type(compute));
}

Tensor NF4LinearImpl::transposed_panel(int64_t first, int64_t count, at::ScalarType compute) const {
  const bool is_float = product_type(compute) == at::kFloat && uses_onednn(at::kFloat);
  if (!is_float) return row_panel(first, count, compute).t();  // as fast
  const Tensor values = at::empty({in_features(), count}, at::kFloat);
  const bool rounded = form_of(compute).rounded;
  const quant::Packed packed = view();
  auto* data = values.data_ptr<float>();
  at::parallel_for(0, ceil_div(count, 16), 1, [&](int64_t begin, int64_t end) {
    const int64_t row = first + 16 * begin, last = first + std::min(16 * end, count);
    quant::decode_as_columns(packed, in_features(), rounded, row, last, data + 16 * begin, count);
  });
  return values;
}

Tensor NF4LinearImpl::column_panel(int64_t first, int64_t count, at::ScalarType compute) const {
  const Form form = form_of(compute);
  const Tensor values = at::empty({out_features(), count}, form.type);
  const quant::Packed packed = view();
  auto* data = static_cast<char*>(values.data_ptr());
  const int64_t row_bytes = count * static_cast<int64_t>(values.element_size());
  at::parallel_for(0, out_features(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * in_features() + first;
      decode_range(packed, at, at + count, form, data + row * row_bytes);
    }
  });
  return values.to(product_type(compute));
}

void NF4LinearImpl::few_rows(const Tensor& x, Tensor out) const {
  const bool rounded = compute_type(x) == at::kBFloat16;
  // bfloat16 products are exact in float32, so the computation may be.
  const Tensor input = (rounded ? x.to(at::kBFloat16) : x).to(at::kFloat).contiguous();
  const bool direct = out.scalar_type() == at::kFloat && out.stride(1) == 1;
  Tensor result = direct ? out : at::empty(out.sizes(), at::kFloat);
  auto* data = result.data_ptr<float>();
  const int64_t stride = result.stride(0), num_x = x.size(0);
  const quant::Packed packed = view();
  count_flops(2 * num_x * in_features() * out_features());
  at::parallel_for(0, out_features(), 32, [&](int64_t begin, int64_t end) {
    quant::multiply_rows(packed, in_features(), rounded, begin, end, input.const_data_ptr<float>(), num_x, data + begin,
                         stride);
  });
  if (!direct) out.copy_(result);
}

void NF4LinearImpl::frozen_product(const Tensor& x, Tensor out) const {
  const at::ScalarType compute = compute_type(x);
  if (x.size(0) == 0) return;
  const int64_t most = product_type(compute) == at::kFloat ? quant::kMaxRows : quant::kMaxRows / 2;
  if (x.size(0) <= most && (compute == at::kFloat || compute == at::kBFloat16)) return few_rows(x, out);
  const Tensor input = product_operand(x, compute);
  const int64_t step = panel_size(out_features(), in_features(), input.scalar_type());
  for (int64_t first = 0; first < out_features(); first += step) {
    const int64_t count = std::min(step, out_features() - first);
    multiply(input, transposed_panel(first, count, compute), out.narrow(1, first, count), /*accumulate=*/false);
  }
}

void NF4LinearImpl::frozen_input_gradient(const Tensor& grad, Tensor dx, bool accumulate) const {
  const at::ScalarType compute = compute_type(grad);
  if (grad.size(0) == 0) return;
  const Tensor input = product_operand(grad, compute);
  // By columns of Ŵ: no sum goes over panels, and each is rounded once.
  const int64_t step = panel_size(in_features(), out_features(), input.scalar_type());
  for (int64_t first = 0; first < in_features(); first += step) {
    const int64_t count = std::min(step, in_features() - first);
    multiply(input, column_panel(first, count, compute), dx.narrow(1, first, count), accumulate);
  }
}

Tensor NF4LinearImpl::product(const Tensor& x) {
  check_input(x);
  const auto self = c10::make_intrusive<NF4Reference>();
  self->linear = std::static_pointer_cast<NF4LinearImpl>(shared_from_this());
  if (x.dim() == 2) return NF4Product::apply(x, self);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = out_features();
  const Tensor y = NF4Product::apply(x.reshape({-1, in_features()}), self);
  return at::_unsafe_view(y, shape);  // no view to autograd: a bias added in place would copy gradients
}

Tensor NF4LinearImpl::dense_weight() const { return row_panel(0, out_features(), at::kFloat); }

void NF4LinearImpl::pretty_print(std::ostream& stream) const {
  stream << "lathe::nn::NF4Linear(in_features=" << in_features() << ", out_features=" << out_features()
         << ", bias=" << (bias_.defined() ? "true" : "false") << ", type=" << quant::quant_type_name(options.type())
         << ", blocksize=" << options.blocksize() << ", double_quant=" << (options.double_quant() ? "true" : "false")
         << ")";
}

}  // namespace lathe::nn
