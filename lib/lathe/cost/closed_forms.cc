#include "lathe/cost/closed_forms.h"

namespace lathe::cost {

Amount token_mixing_flops(const MixerSizes& sizes) { return 2 * 2 * sizes.unit() * sizes.tokens_hidden_size; }

Amount channel_mixing_flops(const MixerSizes& sizes) { return 2 * 2 * sizes.unit() * sizes.channels_hidden_size; }

Amount mixer_block_flops(const MixerSizes& sizes) { return token_mixing_flops(sizes) + channel_mixing_flops(sizes); }

Amount elementwise_flops(const MixerSizes& sizes, ElementwiseConvention convention) {
  const Amount unit = sizes.unit();
  const Amount hidden = sizes.width * sizes.tokens_hidden_size + sizes.sequence_length * sizes.channels_hidden_size;
  const Amount biases = hidden + 2 * unit, residuals = 2 * unit;
  return biases + residuals + convention.gelu * hidden + convention.layer_norm * 2 * unit;
}

Amount mixer_block_weights(const MixerSizes& sizes) {
  return 2 * sizes.sequence_length * sizes.tokens_hidden_size + 2 * sizes.width * sizes.channels_hidden_size;
}

Amount mixer_block_parameters(const MixerSizes& sizes) {
  const Amount biases = sizes.tokens_hidden_size + sizes.sequence_length + sizes.channels_hidden_size + sizes.width;
  const Amount norms = 2 * 2 * sizes.width;
  return mixer_block_weights(sizes) + biases + norms;
}

std::vector<Intermediate> mixer_block_intermediates(const MixerSizes& sizes) {
  using Part = Intermediate::Part;
  const Amount unit = sizes.unit(), statistics = 2 * sizes.sequence_length;
  const Amount tokens = sizes.width * sizes.tokens_hidden_size;
  const Amount channels = sizes.sequence_length * sizes.channels_hidden_size;
  return {
      {"X, the block's input", unit, Part::Stream, false, "LayerNorm 1"},
      {"mean and 1/deviation of LayerNorm 1", statistics, Part::Statistics, false, "LayerNorm 1"},
      {"LayerNorm 1", unit, Part::Norm, true, "W1, for its gradient"},
      {"H1 = W1 LN(X)", tokens, Part::Hidden, true, "GELU"},
      {"GELU(H1)", tokens, Part::Gelu, true, "W2, for its gradient"},
      {"W2 GELU(H1)", unit, Part::Stream, true, ""},
      {"U = X + ...", unit, Part::Stream, true, "LayerNorm 2"},
      {"mean and 1/deviation of LayerNorm 2", statistics, Part::Statistics, false, "LayerNorm 2"},
      {"LayerNorm 2", unit, Part::Norm, true, "W3, for its gradient"},
      {"H2 = W3 LN(U)", channels, Part::Hidden, true, "GELU"},
      {"GELU(H2)", channels, Part::Gelu, true, "W4, for its gradient"},
      {"W4 GELU(H2)", unit, Part::Stream, true, ""},
      {"Y = U + ..., the next block's X", unit, Part::Stream, true, ""},
  };
}

Amount mixer_block_kept(const MixerSizes& sizes, Accounting accounting) {
  using Part = Intermediate::Part;
  Amount elements = 0;
  for (const Intermediate& tensor : mixer_block_intermediates(sizes)) {
    const bool hidden = tensor.part == Part::Hidden || tensor.part == Part::Gelu, saved = !tensor.saved_by.empty();
    bool kept = saved;
    if (accounting == Accounting::Textbook) kept = tensor.output;
    if (accounting == Accounting::Hidden) kept = hidden;
    if (accounting == Accounting::WithoutGelu) kept = saved && tensor.part != Part::Gelu;
    if (accounting == Accounting::WithoutGeluAndNorm)
      kept = saved && tensor.part != Part::Gelu && tensor.part != Part::Norm;
    elements += kept ? tensor.elements : 0;
  }
  return elements;
}

Amount checkpointed(Amount num_layers, Amount per_segment, Amount boundary, Amount stash) {
  return num_layers / per_segment * boundary + per_segment * stash;
}

Amount attention_projection_flops(Amount sequence_length, Amount width) { return 8 * sequence_length * width * width; }

Amount attention_score_flops(Amount sequence_length, Amount width) {
  return 4 * sequence_length * sequence_length * width;
}

TokenFlops full_finetuning_flops(Amount in_features, Amount out_features, bool input_gradient) {
  const Amount product = 2 * in_features * out_features;
  return {product, input_gradient ? product : 0, product, 0};
}

TokenFlops lora_finetuning_flops(Amount in_features, Amount out_features, Amount rank, bool input_gradient) {
  const Amount product = 2 * in_features * out_features, in = 2 * rank * in_features, out = 2 * rank * out_features;
  const Amount forward = in + out, gradients = out /* g B */ + in /* of A */ + out /* of B */;
  return {product, input_gradient ? product : 0, 0, forward + gradients + (input_gradient ? in : 0)};
}

Amount lora_parameters(Amount in_features, Amount out_features, Amount rank) {
  return rank * (in_features + out_features);
}

Amount lora_forward_flops(Amount in_features, Amount out_features, Amount rank) {
  return 2 * lora_parameters(in_features, out_features, rank);
}

namespace {

Amount one_expert(const ExpertSizes& sizes) { return 3 * sizes.width * sizes.hidden_size; }
Amount router_weights(const ExpertSizes& sizes) { return sizes.width * sizes.num_experts; }

}  // namespace

Amount expert_layer_parameters(const ExpertSizes& sizes) {
  return router_weights(sizes) + sizes.num_experts * one_expert(sizes);
}

Amount active_expert_parameters(const ExpertSizes& sizes) {
  return router_weights(sizes) + sizes.top_k * one_expert(sizes);
}

Amount router_flops(const ExpertSizes& sizes) { return 2 * router_weights(sizes); }
Amount chosen_experts_flops(const ExpertSizes& sizes) { return 2 * sizes.top_k * one_expert(sizes); }

}  // namespace lathe::cost
