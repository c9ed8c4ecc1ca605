#include "lathe/models/quantize.h"

#include <ATen/ops/empty.h>

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>

#include "lathe/arch/targets.h"
#include "lathe/base/error.h"
#include "lathe/nn/moe_experts.h"

namespace lathe::models {
namespace {

nn::NF4LinearOptions options_of(const formats::FourBitState& state) {
  return nn::NF4LinearOptions()
      .type(quant::parse_quant_type(state.quant_type).value())
      .blocksize(state.blocksize)
      .double_quant(state.nested);
}

void replace(const nn::NamedSlot& named, const nn::NF4LinearOptions& options) {
  const nn::LinearBase& dense = **named.slot;
  named.slot->replace(nn::NF4Linear(dense.in_features(), dense.out_features(), dense.bias().defined(), options).ptr());
}

at::Tensor bytes_of(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::memcpy(bytes.data_ptr(), text.data(), text.size());
  return bytes;
}

formats::Dtype format_dtype(at::ScalarType type) {
  if (type == at::kBFloat16) return formats::Dtype::BF16;
  return type == at::kHalf ? formats::Dtype::F16 : formats::Dtype::F32;
}

// Gives back the pages of a mapped tensor that has been read for the last time.
void drop_pages(const at::Tensor& mapped) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE)),
             begin = reinterpret_cast<uintptr_t>(mapped.data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + mapped.nbytes()) / page * page;
  if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace

void quantize_from_file(nn::NF4LinearImpl& layer, const formats::TensorLocation& location, io::ModelTensors& files,
                        std::optional<int64_t> expert) {
  at::Tensor dense = files.tensor(location);
  std::string name = location.info.name;
  if (expert) {
    dense = dense.select(0, *expert);
    name += "[" + std::to_string(*expert) + "]";
  }
  const bool narrow = dense.scalar_type() == at::kBFloat16 || dense.scalar_type() == at::kHalf;
  try {
    layer.quantize(narrow ? dense : dense.to(at::kFloat), name);
  } catch (const c10::ValueError& error) {
    throw data_error(location.file, error.what_without_backtrace());
  }
  drop_pages(dense);
}

void quantize_slots(torch::nn::Module& model, nn::NF4LinearOptions options, const std::vector<std::string>& skip) {
  for (const nn::NamedSlot& named : nn::named_slots(model)) {
    if (!arch::is_within_any(named.path, skip)) replace(named, options);
  }
  for (const auto& [path, bank] : nn::expert_banks(model)) {
    for (const std::string& projection : bank->projections()) {
      if (!arch::is_within_any(path + "." + projection, skip)) bank->quantize(projection, options);
    }
  }
}

void quantize_stored_slots(torch::nn::Module& model, const arch::CheckpointMatch& match,
                           const std::vector<std::string>& skip) {
  std::map<std::string, const formats::FourBitWeight*> stored;
  for (const arch::CheckpointMatch::Item& item : match.items) {
    if (item.four_bit != nullptr) stored.emplace(item.parameter.name, item.four_bit);
  }
  for (const nn::NamedSlot& named : nn::named_slots(model)) {
    const auto found = stored.find(named.path + ".weight");
    if (found != stored.end() && !arch::is_within_any(named.path, skip))
      replace(named, options_of(found->second->state));
  }
}

nn::NF4LinearImpl::Stored read_four_bit(const formats::FourBitWeight& weight, io::ModelTensors& files) {
  const auto finite = [&](const formats::TensorLocation& location) {
    at::Tensor values = files.tensor(location);
    if (!values.isfinite().all().item<bool>())
      throw data_error_in(location.file, formats::tensor_label(location.info.name), "has a value that is not finite");
    return values;
  };
  nn::NF4LinearImpl::Stored stored;
  // Whatever type the bytes are stored as.
  stored.weight = files.tensor(weight.weight).flatten().view(at::kByte).unsqueeze(1);
  stored.absmax = weight.state.nested ? files.tensor(weight.absmax) : finite(weight.absmax);
  stored.quant_map = finite(weight.quant_map);
  if (weight.state.nested) {
    stored.nested_absmax = finite(*weight.nested_absmax);
    stored.nested_quant_map = finite(*weight.nested_quant_map);
    stored.nested_offset = weight.state.nested_offset;
  }
  stored.dtype = io::scalar_type(weight.state.dtype, weight.weight.file, weight.weight.info.name);
  return stored;
}

nn::NF4Linear stored_layer(const formats::FourBitWeight& weight, io::ModelTensors& files) {
  const std::vector<int64_t>& shape = weight.state.shape;
  nn::NF4Linear layer(shape[1], shape[0], /*bias=*/false, options_of(weight.state));
  layer->set_packed(read_four_bit(weight, files));
  return layer;
}

formats::FourBitState four_bit_state(const nn::NF4LinearImpl& layer) {
  formats::FourBitState state;
  state.quant_type = quant::quant_type_name(layer.options.type());
  state.blocksize = layer.options.blocksize();
  state.dtype = format_dtype(layer.stored().dtype);
  state.shape = {layer.out_features(), layer.in_features()};
  state.nested = layer.options.double_quant();
  state.nested_offset = layer.stored().nested_offset;
  return state;
}

io::NamedTensors four_bit_tensors(const std::string& weight, const nn::NF4LinearImpl& layer) {
  const formats::FourBitState state = four_bit_state(layer);
  io::NamedTensors tensors = {{weight, layer.weight},
                              {weight + ".absmax", layer.absmax},
                              {weight + ".quant_map", layer.quant_map},
                              {formats::quant_state_name(weight, state), bytes_of(formats::quant_state_text(state))}};
  if (state.nested) {
    tensors.emplace_back(weight + ".nested_absmax", layer.nested_absmax);
    tensors.emplace_back(weight + ".nested_quant_map", layer.nested_quant_map);
  }
  return tensors;
}

}  // namespace lathe::models
