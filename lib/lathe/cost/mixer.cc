#include <utility>

#include "lathe/cost/model.h"

namespace lathe::cost {
namespace {

// B samples, S patches, C channels, D hidden width, K in_features and M out_features of a map along the sequence

class BlockPass {
 public:
  BlockPass(Ledger& ledger, const MixerBlockCost& block, Amount samples)
      : ledger_(ledger), block_(block), samples_(samples), channels_(block.channels) {}

  Value run(const Value& x) const {
    ledger_.enter(Site::TokenMixing);
    const Value u = mix_tokens(x);
    ledger_.enter(block_.experts ? Site::Experts : Site::ChannelMixing);
    if (block_.experts) {
      const Value mixed = experts(ledger_, normalised(u, block_.norm2), *block_.experts);
      Value y = ledger_.tensor(u.rows, u.columns);
      ledger_.record(y, {&mixed, &u}, false, [](const Buffer& grad) { return std::vector<Buffer>{grad, grad}; });
      return y;
    }
    const Value hidden = linear_gelu(ledger_, normalised(u, block_.norm2), block_.channels_fc1);
    const Value y = linear(ledger_, hidden, block_.channels_fc2);
    return added(ledger_, y, u);
  }

 private:
  Value mix_tokens(const Value& x) const {
    const Value normed = normalised(x, block_.norm1);
    const Value h = map_tokens(normed, block_.tokens_fc1, nullptr);
    return map_tokens(gelu_of_product(ledger_, h), block_.tokens_fc2, &x);
  }

  Value normalised(const Value& x, const ModuleCost& norm) const {
    Value y = layer_norm(ledger_, x, norm);
    if (ledger_.elementwise()) y.source = x.buffer;
    return y;
  }

  Value map_tokens(Value x_BKC, const LinearCost& linear, const Value* residual) const {
    const bool plain = linear.rank == 0 && linear.storage == Storage::Float32 && linear.compute == Storage::Float32;
    return plain ? token_map(x_BKC, linear, residual) : transposed_map(std::move(x_BKC), linear, residual);
  }

  Value token_map(const Value& x_BKC, const LinearCost& linear, const Value* residual) const {
    Value y = ledger_.tensor(samples_ * linear.out_features, channels_);
    if (residual != nullptr) ledger_.note_output(y.elements());
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
  Value transposed_map(Value x_BKC, const LinearCost& linear, const Value* residual) const {
    Value x_BCK{samples_ * channels_, linear.in_features, ledger_.allocate(x_BKC.elements() * kFloatBytes)};
    x_BCK.source = x_BKC.source;
    ledger_.record(x_BCK, {&x_BKC}, false, [&ledger = ledger_](const Buffer& grad) {
      return std::vector<Buffer>{ledger.allocate(grad->bytes())};  // what takes it wants it the other way
    });
    x_BKC.buffer.reset();
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
  const MixerBlockCost& block_;
  Amount samples_, channels_;
};

std::vector<MixerBlockCost> blocks_of(const TrainedModel& model, const arch::MixerArch& arch, bool training) {
  std::vector<MixerBlockCost> blocks;
  for (int64_t index = 0; index < arch.num_blocks; ++index) {
    const std::string path = "blocks." + std::to_string(index);
    MixerBlockCost& block = blocks.emplace_back();
    block.channels = static_cast<Amount>(arch.hidden_size);
    block.norm1 = model.module(path + ".norm1");
    block.norm2 = model.module(path + ".norm2");
    block.tokens_fc1 = model.linear(path + ".mlp_tokens.fc1");
    block.tokens_fc2 = model.linear(path + ".mlp_tokens.fc2");
    if (arch.experts) {
      block.experts = model.experts(path + ".moe", index, arch.hidden_size, arch.channels_hidden_size, training);
    } else {
      block.channels_fc1 = model.linear(path + ".mlp_channels.fc1");
      block.channels_fc2 = model.linear(path + ".mlp_channels.fc2");
    }
  }
  return blocks;
}

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

Value mixer_block(Ledger& ledger, const Value& x, const MixerBlockCost& block, Amount num_samples) {
  return BlockPass(ledger, block, num_samples).run(x);
}

Value forward(Ledger& ledger, const TrainedModel& model, const arch::MixerArch& arch, const Batch& batch, bool training,
              const recipe::Checkpointing& policy) {
  ledger.enter(Site::Embeddings);
  const Buffer pixels = ledger.allocate(batch.num_samples * kFloatBytes *
                                        static_cast<Amount>(arch.num_channels * arch.image_height * arch.image_width));
  const auto blocks = std::make_shared<const std::vector<MixerBlockCost>>(blocks_of(model, arch, training));
  const Value mixed = run_layers(ledger, stem(ledger, model, arch, batch), arch.num_blocks, policy,
                                 [&ledger, blocks, samples = batch.num_samples](int64_t index, const Value& x) {
                                   return mixer_block(ledger, x, (*blocks)[static_cast<size_t>(index)], samples);
                                 });
  ledger.enter(Site::Head);
  const Value normed = layer_norm(ledger, mixed, model.module("norm"));
  return linear(ledger, mean_of_patches(ledger, normed, batch.num_samples), model.linear("head"));
}

}  // namespace lathe::cost
