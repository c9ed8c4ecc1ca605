#include "lathe/cost/model.h"

// What Lathe will run: the modules that are there (linear layers and adapters, nn::swiglu, nn::MoELayer) and, for what
// is not, the kernels of the design: RMSNorm by hand, rotation in place, attention in tiles, head and loss in pieces.
namespace lathe::cost {
namespace {

class DecoderLayerCost {
 public:
  DecoderLayerCost(Ledger& ledger, const TrainedModel& model, const arch::DecoderArch& arch, const Batch& batch)
      : ledger_(ledger), model_(model), arch_(arch), batch_(batch) {}

  Value run(int64_t index, const Value& x) const {
    const std::string path = "model.layers." + std::to_string(index);
    ledger_.enter(Site::Attention);
    const Value normed = rms_norm(ledger_, x, model_.module(path + ".input_layernorm"));
    const Value u = added(ledger_, attend(path + ".self_attn", normed), x);
    ledger_.enter(arch_.has_experts(index) ? Site::Experts : Site::Mlp);
    const Value inner = rms_norm(ledger_, u, model_.module(path + ".post_attention_layernorm"));
    return added(ledger_, arch_.has_experts(index) ? mix(path, inner) : transform(path + ".mlp", inner), u);
  }

 private:
  Value attend(const std::string& path, const Value& x) const {
    const auto layer = [&](const char* name) { return &model_.linear(path + name); };
    const LinearCost* key = layer(".k_proj");
    Value qkv = joint_forward(ledger_, x, {layer(".q_proj"), key, layer(".v_proj")});
    if (arch_.qk_norm) qkv = normalise_heads(path, qkv);
    AttentionCost cost;
    cost.num_samples = batch_.num_samples;
    cost.query_length = cost.key_length = batch_.length;
    cost.num_heads = static_cast<Amount>(arch_.num_attention_heads);
    cost.width = static_cast<Amount>(arch_.query_size());
    cost.key_gradient = x.needs_gradient() || key->trains || key->rank > 0;
    return linear(ledger_, attention(ledger_, {&qkv}, cost), *layer(".o_proj"));
  }

  // The norms of queries and keys: new tensors for these, the values stay where they are.
  Value normalise_heads(const std::string& path, const Value& qkv) const {
    const ModuleCost query = model_.module(path + ".q_norm"), key = model_.module(path + ".k_norm");
    const auto heads = static_cast<Amount>(arch_.num_attention_heads + arch_.num_key_value_heads);
    const Value normed = ledger_.tensor(qkv.rows, static_cast<Amount>(arch_.query_size() + arch_.key_value_size()));
    const Buffer rstd = ledger_.allocate(qkv.rows * heads * kFloatBytes);
    Value y{qkv.rows, qkv.columns, qkv.buffer};
    ledger_.record(y, {&qkv}, query.trains,
                   [&ledger = ledger_, query, key, normed = normed.buffer, rstd, raw = qkv.buffer,
                    width = static_cast<Amount>(arch_.head_size)](const Buffer& grad) {
                     if (query.trains) {
                       ledger.add_gradient(query.path + ".weight", width * kFloatBytes);
                       ledger.add_gradient(key.path + ".weight", width * kFloatBytes);
                     }
                     return std::vector<Buffer>{grad};  // in place
                   });
    return y;
  }

  Value transform(const std::string& path, const Value& x) const {
    const Value h = joint_forward(ledger_, x, {&model_.linear(path + ".gate_proj"), &model_.linear(path + ".up_proj")});
    return linear(ledger_, swiglu(ledger_, h), model_.linear(path + ".down_proj"));
  }

  Value mix(const std::string& layer, const Value& x) const {
    return experts(ledger_, x, model_.experts(layer + "." + arch_.moe->block_name, *arch_.moe));
  }

  Ledger& ledger_;
  const TrainedModel& model_;
  const arch::DecoderArch& arch_;
  const Batch batch_;
};

}  // namespace

Value forward(Ledger& ledger, const TrainedModel& model, const arch::DecoderArch& arch, const Batch& batch,
              bool /*training*/, const recipe::Checkpointing& policy) {
  const ModuleCost table = model.module("model.embed_tokens");
  ledger.enter(Site::Embeddings);
  const Buffer ids = ledger.allocate(3 * batch.rows() * kIndexBytes);
  const Value embedded = embedding(ledger, batch.rows(), static_cast<Amount>(arch.vocab_size),
                                   static_cast<Amount>(arch.hidden_size), table, model.storage());
  const auto layer = std::make_shared<const DecoderLayerCost>(ledger, model, arch, batch);
  const Value y = run_layers(ledger, embedded, arch.num_hidden_layers, policy,
                             [layer, ids](int64_t index, const Value& x) { return layer->run(index, x); });
  ledger.enter(Site::Head);
  LinearCost head = model.linear("lm_head");
  if (arch.tied) {
    head.path = table.path;
    head.trains = table.trains;
  }
  return head_cross_entropy(ledger, rms_norm(ledger, y, model.module("model.norm")), head);
}

}  // namespace lathe::cost
