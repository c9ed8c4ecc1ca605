#include "lathe/models/bert.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>

#include <numeric>
#include <string>
#include <utility>

#include "lathe/models/mlp_experts.h"
#include "lathe/nn/lora.h"
#include "lathe/nn/watch.h"

namespace lathe::models {
namespace {

// The layer numbers of dropouts outside the layers.
constexpr uint64_t kEmbeddingsLayer = uint64_t{1} << 32;
constexpr uint64_t kHeadLayer = kEmbeddingsLayer + 1;

std::shared_ptr<nn::LinearBase> dense_linear(int64_t in_features, int64_t out_features) {
  return nn::Linear(in_features, out_features).ptr();
}

Tensor first_rows(const nn::RowOffsets& rows) {
  return at::tensor(at::ArrayRef<int64_t>(rows->data(), rows->size() - 1), at::kLong);
}

nn::RowOffsets one_row_each(int64_t num_samples) {
  auto offsets = std::make_shared<std::vector<int64_t>>(static_cast<size_t>(num_samples) + 1);
  std::iota(offsets->begin(), offsets->end(), 0);
  return offsets;
}

bool any_requires_grad(const torch::nn::Module& module) {
  for (const Tensor& parameter : module.parameters()) {
    if (parameter.requires_grad()) return true;
  }
  return false;
}

}  // namespace

BertEmbeddings::BertEmbeddings(const arch::BertArch& arch) : torch::nn::Module("BertEmbeddings") {
  word_embeddings_ = register_module("word_embeddings", nn::Embedding(arch.vocab_size, arch.hidden_size));
  position_embeddings_ =
      register_module("position_embeddings", nn::Embedding(arch.max_position_embeddings, arch.hidden_size));
  token_type_embeddings_ =
      register_module("token_type_embeddings", nn::Embedding(arch.type_vocab_size, arch.hidden_size));
  layer_norm_ = register_module("LayerNorm", nn::LayerNorm(arch.hidden_size, arch.layer_norm_eps));
}

Tensor BertEmbeddings::forward(const TokenBatch& batch, nn::kernels::Dropout dropout) {
  // Frozen embeddings leave no node: the first layer then computes no input gradient.
  const at::AutoGradMode grad_mode(at::GradMode::is_enabled() && any_requires_grad(*this));
  Tensor sum = word_embeddings_->forward(batch.input_ids);
  sum =
      sum.add_(position_embeddings_->forward(batch.position_ids)).add_(token_type_embeddings_->forward(batch.type_ids));
  return nn::dropout(layer_norm_->forward(sum), dropout);
}

BertSelfAttention::BertSelfAttention(const arch::BertArch& arch)
    : nn::SlottedModule("BertSelfAttention"),
      query(register_linear("query", dense_linear(arch.hidden_size, arch.hidden_size))),
      key(register_linear("key", dense_linear(arch.hidden_size, arch.hidden_size))),
      value(register_linear("value", dense_linear(arch.hidden_size, arch.hidden_size))) {}

BertOutput::BertOutput(int64_t in_features, const arch::BertArch& arch)
    : nn::SlottedModule("BertOutput"),
      dense_(register_linear("dense", dense_linear(in_features, arch.hidden_size))),
      layer_norm_(register_module("LayerNorm", nn::LayerNorm(arch.hidden_size, arch.layer_norm_eps))) {}

Tensor BertOutput::forward(const Tensor& x, const Tensor& residual, nn::kernels::Dropout dropout) {
  return nn::linear_residual_norm(x, *dense_, residual, *layer_norm_, dropout);
}

BertExpertsOutput::BertExpertsOutput(const arch::BertArch& arch)
    : torch::nn::Module("BertExpertsOutput"),
      layer_norm_(register_module("LayerNorm", nn::LayerNorm(arch.hidden_size, arch.layer_norm_eps))) {}

Tensor BertExpertsOutput::forward(const Tensor& x, const Tensor& residual, nn::kernels::Dropout dropout) {
  return layer_norm_->forward(nn::dropout(x, dropout) + residual);
}

BertLayer::Attention::Attention(const arch::BertArch& arch) : torch::nn::Module("BertAttention") {
  self = register_module("self", std::make_shared<BertSelfAttention>(arch));
  output = register_module("output", std::make_shared<BertOutput>(arch.hidden_size, arch));
}

BertLayer::Intermediate::Intermediate(const arch::BertArch& arch)
    : nn::SlottedModule("BertIntermediate"),
      dense(register_linear("dense", dense_linear(arch.hidden_size, arch.intermediate_size))) {}

BertLayer::BertLayer(const arch::BertArch& arch, int64_t index)
    : nn::SlottedModule("BertLayer"),
      index_(index),
      num_heads_(arch.num_attention_heads),
      hidden_dropout_(arch.hidden_dropout),
      attention_dropout_(arch.attention_dropout),
      gelu_(arch.hidden_act == arch::Activation::Gelu ? nn::Gelu::Erf : nn::Gelu::Tanh) {
  attention_ = register_module("attention", std::make_shared<Attention>(arch));
  if (arch.experts) {
    experts_ = register_module(
        "moe", build_mlp_experts(*arch.experts, arch.hidden_size, arch.intermediate_size, arch.hidden_act).ptr());
    experts_output_ = register_module("output", std::make_shared<BertExpertsOutput>(arch));
    return;
  }
  intermediate_ = register_module("intermediate", std::make_shared<Intermediate>(arch));
  output_ = register_module("output", std::make_shared<BertOutput>(arch.intermediate_size, arch));
}

nn::AttentionOptions BertLayer::attention_options(const Tensor& x, const nn::Pass& pass) {
  return {num_heads_, pass.dropout(attention_dropout_, static_cast<uint64_t>(index_), "attention"),
          x.requires_grad() || any_requires_grad(*attention_->self->key.module())};
}

Tensor BertLayer::forward(const Tensor& x, const TokenBatch& batch, const nn::Pass& pass) {
  const BertSelfAttention& self = *attention_->self;
  const Tensor qkv = nn::joint_forward(x, {&*self.query, &*self.key, &*self.value});
  return finish(nn::self_attention(qkv, batch.rows, attention_options(x, pass)), x, pass);
}

Tensor BertLayer::forward_first(const Tensor& x, const TokenBatch& batch, const nn::Pass& pass) {
  const BertSelfAttention& self = *attention_->self;
  const Tensor kv = nn::joint_forward(x, {&*self.key, &*self.value});
  const Tensor first = x.index_select(0, first_rows(batch.rows));
  const Tensor context = nn::cross_attention(self.query(first), one_row_each(batch.num_samples()), kv, batch.rows,
                                             attention_options(x, pass));
  return finish(context, first, pass);
}

Tensor BertLayer::finish(const Tensor& context, const Tensor& residual, const nn::Pass& pass) {
  const auto layer = static_cast<uint64_t>(index_);
  const Tensor attended =
      attention_->output->forward(context, residual, pass.dropout(hidden_dropout_, layer, "attention.output"));
  const nn::kernels::Dropout dropout = pass.dropout(hidden_dropout_, layer, "output");
  if (experts_) return experts_output_->forward(experts_->forward(attended, pass, layer), attended, dropout);
  const Tensor hidden = nn::linear_gelu(attended, *intermediate_->dense, gelu_);
  return output_->forward(hidden, attended, dropout);
}

BertModel::Encoder::Encoder(const arch::BertArch& arch) : torch::nn::Module("BertEncoder") {
  auto list = register_module("layer", std::make_shared<torch::nn::Module>("BertLayers"));
  for (int64_t i = 0; i < arch.num_hidden_layers; ++i) {
    layers.push_back(list->register_module(std::to_string(i), std::make_shared<BertLayer>(arch, i)));
  }
}

BertModel::Pooler::Pooler(const arch::BertArch& arch)
    : nn::SlottedModule("BertPooler"),
      dense(register_linear("dense", dense_linear(arch.hidden_size, arch.hidden_size))) {}

BertModel::BertModel(const arch::BertArch& arch)
    : torch::nn::Module("BertModel"), hidden_dropout_(arch.hidden_dropout) {
  embeddings_ = register_module("embeddings", std::make_shared<BertEmbeddings>(arch));
  encoder_ = register_module("encoder", std::make_shared<Encoder>(arch));
  pooler_ = register_module("pooler", std::make_shared<Pooler>(arch));
}

Tensor BertModel::forward(const TokenBatch& batch, const nn::Pass& pass) {
  const Tensor embedded = nn::watched(
      "bert.embeddings", embeddings_->forward(batch, pass.dropout(hidden_dropout_, kEmbeddingsLayer, "embeddings")));
  const auto num_layers = static_cast<int64_t>(encoder_->layers.size());
  const auto layer = [this, batch, pass, num_layers](int64_t i, const Tensor& x) {
    BertLayer& module = *encoder_->layers[static_cast<size_t>(i)];
    return nn::watched("bert.encoder.layer", i,
                       i + 1 < num_layers ? module.forward(x, batch, pass) : module.forward_first(x, batch, pass));
  };
  const Tensor encoded = nn::run_layers(embedded, num_layers, pass.layers, layer);
  return nn::watched("bert.pooler", pooler_->dense(encoded).tanh());
}

BertForSequenceClassification::BertForSequenceClassification(const arch::BertArch& arch, int64_t num_labels)
    : TextClassifier("BertForSequenceClassification"),
      classifier_dropout_(arch.classifier_dropout.value_or(arch.hidden_dropout)),
      bert_(register_module("bert", std::make_shared<BertModel>(arch))),
      classifier_(register_linear("classifier", dense_linear(arch.hidden_size, num_labels))) {}

Tensor BertForSequenceClassification::forward(const TokenBatch& batch, const nn::Pass& pass) {
  const Tensor pooled = bert_->forward(batch, pass);
  const Tensor dropped = nn::dropout(pooled, pass.dropout(classifier_dropout_, kHeadLayer, "classifier"));
  return nn::watched("classifier", classifier_(dropped));
}

}  // namespace lathe::models
