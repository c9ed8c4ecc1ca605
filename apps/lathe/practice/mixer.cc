#include "practice/mixer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

namespace lathe::app::practice {

nn::MixerBlock make_block(const cost::MixerSizes& sizes, const std::string& name, at::ScalarType dtype) {
  const auto whole = [](double size) { return static_cast<int64_t>(size); };
  nn::MixerBlock block(nn::MixerBlockOptions(whole(sizes.sequence_length), whole(sizes.width),
                                             whole(sizes.tokens_hidden_size), whole(sizes.channels_hidden_size)));
  for (auto& item : block->named_parameters()) {
    Tensor parameter = item.value();
    const bool matrix = parameter.dim() == 2, norm = item.key().starts_with("norm");
    Tensor values = drawn(parameter.sizes(), (name + "." + item.key()).c_str(), dtype) *
                    (matrix ? 1 / std::sqrt(static_cast<double>(parameter.size(1))) : 0.1);
    if (norm && item.key().ends_with("weight")) values = values + 1;
    parameter.set_data(values);
  }
  return block;
}

Tensor plain_block(const Tensor& x_BSC, nn::MixerBlockImpl& block, PlainActivation activation,
                   const std::function<void(const Tensor&)>& seen) {
  const auto parameters = block.named_parameters();
  const auto output = [&](const Tensor& y) { return seen(y), y; };
  const auto linear = [&](const Tensor& in, const std::string& name) {
    return output(at::linear(in, parameters[name + ".weight"], parameters[name + ".bias"]));
  };
  const auto mlp = [&](const Tensor& in, const std::string& name) {
    const Tensor h = linear(in, name + ".fc1");
    return linear(output(activation == PlainActivation::Gelu ? at::gelu(h) : at::relu(h)), name + ".fc2");
  };
  const auto norm = [&](const Tensor& in, const std::string& name) {
    return output(at::layer_norm(in, {in.size(-1)}, parameters[name + ".weight"], parameters[name + ".bias"],
                                 block.options.eps()));
  };
  const Tensor u = output(x_BSC + mlp(norm(x_BSC, "norm1").transpose(1, 2), "mlp_tokens").transpose(1, 2));
  return output(u + mlp(norm(u, "norm2"), "mlp_channels"));
}

SmallMixer::SmallMixer(const cost::MixerSizes& sizes, const std::string& name, at::ScalarType dtype) {
  for (int64_t i = 0; i < static_cast<int64_t>(sizes.num_blocks); ++i)
    blocks.push_back(make_block(sizes, name + ".blocks." + std::to_string(i), dtype));
  const auto width = static_cast<int64_t>(sizes.width);
  head = (drawn({kClasses, width}, (name + ".head").c_str(), dtype) / std::sqrt(sizes.width)).requires_grad_();
}

Tensor SmallMixer::blocks_forward(const Tensor& x_BSC, const nn::LayerPolicy& policy) const {
  return nn::run_layers(x_BSC, static_cast<int64_t>(blocks.size()), policy, [this](int64_t index, const Tensor& x) {
    return nn::MixerBlock(blocks[static_cast<size_t>(index)])->forward(x);
  });
}

Tensor SmallMixer::forward(const Tensor& x_BSC, const nn::LayerPolicy& policy) const {
  return at::linear(blocks_forward(x_BSC, policy).mean(1), head);
}

std::vector<std::pair<std::string, Tensor>> SmallMixer::parameters() const {
  std::vector<std::pair<std::string, Tensor>> all;
  for (size_t i = 0; i < blocks.size(); ++i) {
    for (const auto& item : blocks[i]->named_parameters())
      all.emplace_back("blocks." + std::to_string(i) + "." + item.key(), item.value());
  }
  all.emplace_back("head", head);
  return all;
}

nn::LayerPolicy policy_of(int64_t layers_per_segment) {
  if (layers_per_segment == 0) return {};
  return {nn::Recompute::Full, layers_per_segment};
}

BlocksMemory measured_memory(const SmallMixer& model, const Tensor& x_BSC, int64_t micro_batch,
                             int64_t layers_per_segment) {
  const nn::LayerPolicy policy = policy_of(layers_per_segment);
  const Tensor grad = drawn({micro_batch, x_BSC.size(1), x_BSC.size(2)}, "gradient");
  forget_gradients(model.parameters());
  BlocksMemory memory;
  const ByteMeter meter;
  for (int64_t first = 0; first < x_BSC.size(0); first += micro_batch) {
    const int64_t before = meter.live();
    const Tensor y = model.blocks_forward(x_BSC.narrow(0, first, micro_batch), policy);
    memory.kept = static_cast<Amount>(meter.live() - before);
    y.backward(grad);
  }
  memory.peak = static_cast<Amount>(meter.peak());
  memory.gradients = static_cast<Amount>(meter.live());
  forget_gradients(model.parameters());
  return memory;
}

BlocksMemory planned_memory(const cost::MixerSizes& sizes, int64_t batch, int64_t micro_batch,
                            const recipe::Checkpointing& policy) {
  const auto samples = static_cast<Amount>(micro_batch);
  cost::Ledger ledger;
  const cost::Value x = ledger.tensor(samples * sizes.sequence_length, sizes.width);
  const cost::Buffer grad = ledger.allocate(x.buffer->bytes());
  const Amount given = ledger.live_bytes();
  BlocksMemory memory;
  for (int64_t first = 0; first < batch; first += micro_batch) {
    const Amount before = ledger.live_bytes();
    const cost::Value y = cost::run_layers(
        ledger, x, static_cast<int64_t>(sizes.num_blocks), policy, [&](int64_t index, const cost::Value& in) {
          return cost::mixer_block(ledger, in, planned_block(sizes, "blocks." + std::to_string(index) + "."), samples);
        });
    memory.kept = ledger.live_bytes() - before;
    ledger.backward(y, grad);
  }
  memory.peak = ledger.peak_bytes() - given;
  memory.gradients = ledger.live_bytes() - given;
  memory.peak_gradients = ledger.peak_gradient_bytes();
  memory.peak_passing = ledger.peak_temporary_bytes();
  return memory;
}

recipe::Checkpointing planned_policy_of(int64_t layers_per_segment) {
  if (layers_per_segment == 0) return {};
  return {recipe::Checkpointing::Kind::Every, layers_per_segment};
}

Amount derive_peak(Working& working, const std::string& text, const BlocksMemory& planned) {
  return working.derive(text,
                        filled("kept + gradients + passing = {} + {} + {} B",
                               {planned.peak_kept(), planned.peak_gradients, planned.peak_passing}),
                        planned.peak, Unit::Bytes);
}

Amount planned_exam_checkpoints(int64_t layers_per_segment) {
  const auto batch = static_cast<int64_t>(kExamBatch), layers = static_cast<int64_t>(kExamMixer.num_blocks);
  const Amount kept = planned_memory(kExamMixer, batch, batch, planned_policy_of(layers_per_segment)).kept;
  const Amount input = kExamBatch * kExamMixer.unit() * cost::kFloatBytes;
  const Amount statistics =
      static_cast<Amount>(layers_per_segment) * kExamBatch * 4 * kExamMixer.sequence_length * cost::kFloatBytes;
  const Amount states = static_cast<Amount>(layers / layers_per_segment - 1) * cost::kGeneratorStateBytes;
  return kept + input - statistics - states;
}

Amount generator_bytes() { return static_cast<Amount>(at::detail::getDefaultCPUGenerator().get_state().nbytes()); }

std::vector<Tensor> gradients_of(const std::vector<std::pair<std::string, Tensor>>& parameters) {
  std::vector<Tensor> gradients;
  for (const auto& [name, parameter] : parameters)
    gradients.push_back(parameter.grad().defined() ? parameter.grad().clone() : at::zeros_like(parameter));
  return gradients;
}

void forget_gradients(const std::vector<std::pair<std::string, Tensor>>& parameters) {
  for (const auto& [name, parameter] : parameters) parameter.mutable_grad().reset();
}

double largest_difference(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, relative_difference(a[i], b[i]));
  return largest;
}

cost::MixerBlockCost planned_block(const cost::MixerSizes& sizes, const std::string& path) {
  const auto layer = [&](const char* name, double in_features, double out_features) {
    cost::LinearCost linear{path + name, in_features, out_features};
    linear.trains = true;
    return linear;
  };
  return {.channels = sizes.width,
          .norm1 = {path + "norm1", true},
          .norm2 = {path + "norm2", true},
          .tokens_fc1 = layer("mlp_tokens.fc1", sizes.sequence_length, sizes.tokens_hidden_size),
          .tokens_fc2 = layer("mlp_tokens.fc2", sizes.tokens_hidden_size, sizes.sequence_length),
          .channels_fc1 = layer("mlp_channels.fc1", sizes.width, sizes.channels_hidden_size),
          .channels_fc2 = layer("mlp_channels.fc2", sizes.channels_hidden_size, sizes.width)};
}

cost::Value planned_input(cost::Ledger& ledger, const cost::MixerSizes& sizes, double num_samples) {
  cost::Value x = ledger.tensor(num_samples * sizes.sequence_length, sizes.width);
  ledger.record(x, {}, /*trains=*/true, [](const cost::Buffer&) { return std::vector<cost::Buffer>(); });
  return x;
}

}  // namespace lathe::app::practice
