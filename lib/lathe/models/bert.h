#pragma once

#include <memory>
#include <vector>

#include "lathe/models/text_classifier.h"
#include "lathe/nn/modules.h"
#include "lathe/nn/moe.h"

namespace lathe::models {

/// `embeddings`: norm(word + position + token type), then dropout.
///
/// Shape   batch of N tokens -> [N, hidden_size]
class BertEmbeddings : public torch::nn::Module {
 public:
  explicit BertEmbeddings(const arch::BertArch& arch);
  Tensor forward(const TokenBatch& batch, nn::kernels::Dropout dropout);

 private:
  nn::Embedding word_embeddings_{nullptr}, position_embeddings_{nullptr}, token_type_embeddings_{nullptr};
  nn::LayerNorm layer_norm_{nullptr};
};

/// `attention.self`: the projections of one layer's attention.
class BertSelfAttention : public nn::SlottedModule {
 public:
  explicit BertSelfAttention(const arch::BertArch& arch);
  nn::LinearSlot query, key, value;
};

/// `attention.output` and `output`: norm(dropout(dense(x)) + residual).
class BertOutput : public nn::SlottedModule {
 public:
  BertOutput(int64_t in_features, const arch::BertArch& arch);
  Tensor forward(const Tensor& x, const Tensor& residual, nn::kernels::Dropout dropout);

 private:
  nn::LinearSlot dense_;
  nn::LayerNorm layer_norm_;
};

/// `output` where experts stand for the MLP: norm(dropout(x) + residual).
class BertExpertsOutput : public torch::nn::Module {
 public:
  explicit BertExpertsOutput(const arch::BertArch& arch);
  Tensor forward(const Tensor& x, const Tensor& residual, nn::kernels::Dropout dropout);

 private:
  nn::LayerNorm layer_norm_;
};

/// One layer of the encoder: attention and a GELU MLP (or experts, `moe`), each followed by residual and norm.
class BertLayer : public nn::SlottedModule {
 public:
  BertLayer(const arch::BertArch& arch, int64_t index);

  /// All tokens: [N, hidden_size] -> [N, hidden_size].
  Tensor forward(const Tensor& x, const TokenBatch& batch, const nn::Pass& pass);
  /// Each sample's first token only: [N, hidden_size] -> [num_samples, hidden_size]. The same function as the first
  /// rows of forward(); the work for the other rows, which nobody reads, is left out.
  Tensor forward_first(const Tensor& x, const TokenBatch& batch, const nn::Pass& pass);

 private:
  nn::AttentionOptions attention_options(const Tensor& x, const nn::Pass& pass);
  Tensor finish(const Tensor& context, const Tensor& residual, const nn::Pass& pass);

  // The levels `attention` and `intermediate` exist only for the names of transformers.
  class Attention : public torch::nn::Module {
   public:
    explicit Attention(const arch::BertArch& arch);
    std::shared_ptr<BertSelfAttention> self;
    std::shared_ptr<BertOutput> output;
  };
  class Intermediate : public nn::SlottedModule {
   public:
    explicit Intermediate(const arch::BertArch& arch);
    nn::LinearSlot dense;
  };

  int64_t index_;
  int64_t num_heads_;
  double hidden_dropout_, attention_dropout_;
  nn::Gelu gelu_;
  std::shared_ptr<Attention> attention_;
  std::shared_ptr<Intermediate> intermediate_;
  std::shared_ptr<BertOutput> output_;
  std::shared_ptr<nn::MoELayerImpl> experts_;  ///< in the place of the two
  std::shared_ptr<BertExpertsOutput> experts_output_;
};

/// `bert`: embeddings, encoder, and the pooler on each sample's first token.
///
/// Shape   batch of B samples -> [B, hidden_size], tanh(dense(first token))
class BertModel : public torch::nn::Module {
 public:
  explicit BertModel(const arch::BertArch& arch);
  Tensor forward(const TokenBatch& batch, const nn::Pass& pass);

 private:
  class Encoder : public torch::nn::Module {
   public:
    explicit Encoder(const arch::BertArch& arch);
    std::vector<std::shared_ptr<BertLayer>> layers;
  };
  class Pooler : public nn::SlottedModule {
   public:
    explicit Pooler(const arch::BertArch& arch);
    nn::LinearSlot dense;
  };

  double hidden_dropout_;
  std::shared_ptr<BertEmbeddings> embeddings_;
  std::shared_ptr<Encoder> encoder_;
  std::shared_ptr<Pooler> pooler_;
};

/// BERT with a linear head on the pooled first token.
///
/// State   bert.*, classifier.weight [num_labels, hidden_size], classifier.bias [num_labels]
class BertForSequenceClassification : public TextClassifier {
 public:
  BertForSequenceClassification(const arch::BertArch& arch, int64_t num_labels);
  Tensor forward(const TokenBatch& batch, const nn::Pass& pass) override;

 private:
  double classifier_dropout_;
  std::shared_ptr<BertModel> bert_;
  nn::LinearSlot classifier_;
};

}  // namespace lathe::models
