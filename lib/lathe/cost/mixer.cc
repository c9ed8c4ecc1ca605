#include "lathe/cost/model.h"

namespace lathe::cost {
namespace {

// B samples, S patches, C channels, D hidden width, K in_features and M out_features of a map along the sequence

class MixerBlockCost {
 public:
  MixerBlockCost(Ledger& ledger, const TrainedModel& model, const arch::MixerArch& arch, Amount samples)
      : ledger_(ledger),
        model_(model),
        arch_(arch),
        samples_(samples),
        channels_(static_cast<Amount>(arch.hidden_size)) {}

  Value run(int64_t index, const Value& x) const {
    const std::string path = "blocks." + std::to_string(index);
    const Value u = mix_tokens(path, x);
    const Value normed = normalised(u, model_.module(path + ".norm2"));
    if (arch_.experts) {
      const Value mixed =
          experts(ledger_, normed, model_.experts(path + ".moe", arch_.hidden_size, arch_.channels_hidden_size));
      Value y = ledger_.tensor(u.rows, u.columns);
      ledger_.record(y, {&mixed, &u}, false, [](const Buffer& grad) { return std::vector<Buffer>{grad, grad}; });
      return y;
    }
    const Value hidden = linear_gelu(ledger_, normed, model_.linear(path + ".mlp_channels.fc1"));
    const Value y = linear(ledger_, hidden, model_.linear(path + ".mlp_channels.fc2"));
    return added(ledger_, y, u);
  }

 private:
  Value mix_tokens(const std::string& path, const Value& x) const {
    const Value normed = normalised(x, model_.module(path + ".norm1"));
    const Value h = map_tokens(normed, model_.linear(path + ".mlp_tokens.fc1"), nullptr);
    return map_tokens(gelu_of_product(ledger_, h), model_.linear(path + ".mlp_tokens.fc2"), &x);
  }

  Value normalised(const Value& x, const ModuleCost& norm) const {
    Value y = layer_norm(ledger_, x, norm);
    if (ledger_.elementwise()) y.source = x.buffer;
    return y;
  }

  Value map_tokens(const Value& x_BKC, const LinearCost& linear, const Value* residual) const {
    const bool plain = linear.rank == 0 && linear.storage == Storage::Float32 && linear.compute == Storage::Float32;
    return plain ? token_map(x_BKC, linear, residual) : transposed_map(x_BKC, linear, residual);
  }

  Value token_map(const Value& x_BKC, const LinearCost& linear, const Value* residual) const {
    Value y = ledger_.tensor(samples_ * linear.out_features, channels_);
    const Amount product = 2 * samples_ * channels_ * linear.in_features * linear.out_features;
    ledger_.count(Part::Linear, product);
    const Saved saved = linear.trains ? Saved(ledger_, x_BKC) : Saved();
    std::vector<const Value*> inputs = {&x_BKC};
    if (residual != nullptr) inputs.push_back(residual);
    ledger_.record(y, inputs, linear.trains,
                   [&ledger = ledger_, linear, saved, product, elements = x_BKC.elements(),
                    wants_dx = x_BKC.needs_gradient(), parts = inputs.size()](const Buffer& grad) {
                     const Buffer input = saved.unpack();
                     std::vector<Buffer> grads(parts, grad);
                     grads[0] = wants_dx ? ledger.allocate(elements * kFloatBytes) : nullptr;
                     if (wants_dx) ledger.count(Part::Linear, product);
                     if (!linear.trains) return grads;
                     ledger.count(Part::Linear, product);
                     ledger.add_gradient(linear.path + ".weight",
                                         linear.in_features * linear.out_features * kFloatBytes);
                     ledger.add_gradient(linear.path + ".bias", linear.out_features * kFloatBytes);
                     return grads;
                   });
    return y;
  }

  // Any other layer sees a transposed copy.
  Value transposed_map(const Value& x_BKC, const LinearCost& linear, const Value* residual) const {
    Value x_BCK = ledger_.tensor(samples_ * channels_, linear.in_features);
    x_BCK.source = x_BKC.source;
    ledger_.record(x_BCK, {&x_BKC}, false, [](const Buffer& grad) { return std::vector<Buffer>{grad}; });
    const Value y_BCM = cost::linear(ledger_, x_BCK, linear);
    Value y = ledger_.tensor(samples_ * linear.out_features, channels_);
    std::vector<const Value*> inputs = {&y_BCM};
    if (residual != nullptr) inputs.push_back(residual);
    ledger_.record(y, inputs, false,
                   [&ledger = ledger_, parts = inputs.size(), bytes = y.buffer->bytes()](const Buffer& grad) {
                     std::vector<Buffer> grads(parts, grad);
                     grads[0] = ledger.allocate(bytes);  // transposed
                     return grads;
                   });
    return y;
  }

  Ledger& ledger_;
  const TrainedModel& model_;
  const arch::MixerArch& arch_;
  Amount samples_, channels_;
};

Value stem(Ledger& ledger, const TrainedModel& model, const arch::MixerArch& arch, const Batch& batch) {
  const auto features = static_cast<Amount>(arch.num_channels * arch.patch_size * arch.patch_size);
  const auto width = static_cast<Amount>(arch.hidden_size);
  const Amount rows = batch.num_samples * static_cast<Amount>(arch.num_patches());
  const Value patches = ledger.tensor(rows, features);
  LinearCost projection{"stem.proj", features, width};
  projection.trains = model.module("stem.proj").trains;
  return linear(ledger, patches, projection);
}

// The mean over the patches of each sample.
Value mean_of_patches(Ledger& ledger, const Value& x, Amount samples) {
  Value y = ledger.tensor(samples, x.columns);
  ledger.record(y, {&x}, false, [&ledger, bytes = x.elements() * kFloatBytes](const Buffer&) {
    return std::vector<Buffer>{ledger.allocate(bytes)};
  });
  return y;
}

}  // namespace

Value forward(Ledger& ledger, const TrainedModel& model, const arch::MixerArch& arch, const Batch& batch,
              bool /*training*/, const recipe::Checkpointing& policy) {
  const Buffer pixels = ledger.allocate(batch.num_samples * kFloatBytes *
                                        static_cast<Amount>(arch.num_channels * arch.image_height * arch.image_width));
  const auto block = std::make_shared<const MixerBlockCost>(ledger, model, arch, batch.num_samples);
  const Value mixed = run_layers(ledger, stem(ledger, model, arch, batch), arch.num_blocks, policy,
                                 [block](int64_t index, const Value& x) { return block->run(index, x); });
  const Value normed = layer_norm(ledger, mixed, model.module("norm"));
  return linear(ledger, mean_of_patches(ledger, normed, batch.num_samples), model.linear("head"));
}

}  // namespace lathe::cost
