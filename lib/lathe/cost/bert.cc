#include "lathe/cost/model.h"

namespace lathe::cost {
namespace {

// One layer; `first_only`: each sample's first token, as the last layer computes it.
class BertLayerCost {
 public:
  BertLayerCost(Ledger& ledger, const TrainedModel& model, const arch::BertArch& arch, const Batch& batch,
                bool training)
      : ledger_(ledger), model_(model), arch_(arch), batch_(batch), training_(training) {}

  Value run(int64_t index, const Value& x) const {
    const std::string path = "bert.encoder.layer." + std::to_string(index);
    const auto self = [&](const char* name) { return &model_.linear(path + ".attention.self." + name); };
    const LinearCost* key = self("key");
    ledger_.enter(Site::Attention);
    AttentionCost cost{batch_.num_samples,
                       batch_.length,
                       batch_.length,
                       static_cast<Amount>(arch_.num_attention_heads),
                       static_cast<Amount>(arch_.hidden_size),
                       x.needs_gradient() || key->trains || key->rank > 0};
    if (index + 1 < arch_.num_hidden_layers) {
      Value qkv = joint_forward(ledger_, x, {self("query"), key, self("value")});
      return finish(path, index, attention(ledger_, {&qkv}, cost), x);
    }
    cost.query_length = 1;
    const Value kv = joint_forward(ledger_, x, {key, self("value")});
    const Value first = select_rows(ledger_, x, batch_.num_samples);
    const Value q = linear(ledger_, first, *self("query"));
    return finish(path, index, attention(ledger_, {&q, &kv}, cost), first);
  }

 private:
  Value finish(const std::string& path, int64_t index, const Value& context, const Value& residual) const {
    const bool dropout = training_ && arch_.hidden_dropout > 0;
    const Value attended = linear_residual_norm(ledger_, context, model_.linear(path + ".attention.output.dense"),
                                                residual, model_.module(path + ".attention.output.LayerNorm"), dropout);
    const ModuleCost norm = model_.module(path + ".output.LayerNorm");
    ledger_.enter(arch_.experts ? Site::Experts : Site::Mlp);
    if (arch_.experts) {
      const Value mixed =
          experts(ledger_, attended,
                  model_.experts(path + ".moe", index, arch_.hidden_size, arch_.intermediate_size, training_));
      const Value dropped = cost::dropout(ledger_, mixed, dropout);
      Value sum = ledger_.tensor(dropped.rows, dropped.columns);
      ledger_.record(sum, {&dropped, &attended}, false, [](const Buffer& grad) {
        return std::vector<Buffer>{grad, grad};
      });
      return layer_norm(ledger_, sum, norm);
    }
    const Value hidden = linear_gelu(ledger_, attended, model_.linear(path + ".intermediate.dense"));
    return linear_residual_norm(ledger_, hidden, model_.linear(path + ".output.dense"), attended, norm, dropout);
  }

  Ledger& ledger_;
  const TrainedModel& model_;
  const arch::BertArch& arch_;
  const Batch batch_;
  bool training_;
};

Value embeddings(Ledger& ledger, const TrainedModel& model, const arch::BertArch& arch, const Batch& batch,
                 bool dropped) {
  const std::string path = "bert.embeddings.";
  ledger.enter(Site::Embeddings);
  const auto table = [&](const char* name, int64_t entries) {
    return embedding(ledger, batch.rows(), static_cast<Amount>(entries), static_cast<Amount>(arch.hidden_size),
                     model.module(path + name), model.storage());
  };
  Value sum = table("word_embeddings", arch.vocab_size);
  for (const auto& [name, entries] : {std::pair("position_embeddings", arch.max_position_embeddings),
                                      std::pair("token_type_embeddings", arch.type_vocab_size)}) {
    const Value added = table(name, entries);
    Value both{sum.rows, sum.columns, sum.buffer};  // added in place
    ledger.record(both, {&sum, &added}, false, [](const Buffer& grad) { return std::vector<Buffer>{grad, grad}; });
    sum = both;
  }
  return dropout(ledger, layer_norm(ledger, sum, model.module(path + "LayerNorm")), dropped);
}

}  // namespace

Value forward(Ledger& ledger, const TrainedModel& model, const arch::BertArch& arch, const Batch& batch, bool training,
              const recipe::Checkpointing& policy) {
  const bool dropped = training && arch.hidden_dropout > 0;
  const bool frozen = !model.module("bert.embeddings.word_embeddings").trains &&
                      !model.module("bert.embeddings.LayerNorm").trains &&
                      !model.module("bert.embeddings.position_embeddings").trains &&
                      !model.module("bert.embeddings.token_type_embeddings").trains;
  const auto embed = [&] { return embeddings(ledger, model, arch, batch, dropped); };
  const Buffer ids = ledger.allocate(3 * batch.rows() * kIndexBytes);
  const Value embedded = frozen ? ledger.without_gradient(embed) : embed();
  const auto layer = std::make_shared<const BertLayerCost>(ledger, model, arch, batch, training);
  const Value encoded = run_layers(ledger, embedded, arch.num_hidden_layers, policy,
                                   [layer, ids](int64_t index, const Value& x) { return layer->run(index, x); });
  ledger.enter(Site::Head);
  const Value pooled = tanh(ledger, linear(ledger, encoded, model.linear("bert.pooler.dense")));
  const bool head_dropped = training && arch.classifier_dropout.value_or(arch.hidden_dropout) > 0;
  return linear(ledger, dropout(ledger, pooled, head_dropped), model.linear("classifier"));
}

}  // namespace lathe::cost
