#include "wrong_formulas.h"

#include <functional>

#include "lathe/cost/closed_forms.h"
#include "lathe/cost/ops.h"
#include "lathe/cost/parameters.h"
#include "lathe/nn/moe_balance.h"
#include "practice/collapse.h"

namespace lathe::app::practice {

Formulas& formulas() {
  static Formulas formulas;
  return formulas;
}

namespace {

using namespace cost;

// What a result is multiplied by.
Amount factor_of(const std::string& name) {
  formulas().called.insert(name);
  return formulas().wrong == name ? 1.02 : 1;
}

Amount scaled(Amount value, Amount factor) { return value * factor; }

// The forward product only: ratios must not hide it.
TokenFlops scaled(TokenFlops flops, Amount factor) {
  flops.forward *= factor;
  return flops;
}

ParameterCount scaled(ParameterCount count, Amount factor) {
  count.total *= factor;
  count.active *= factor;
  for (auto& [kind, parameters] : count.kinds) parameters *= factor;
  return count;
}

at::Tensor scaled(const at::Tensor& loss, Amount factor) { return loss * factor; }

nn::LoadFigures scaled(nn::LoadFigures figures, Amount factor) {
  figures.entropy *= factor;
  figures.max_vio *= factor;
  return figures;
}

std::vector<Intermediate> scaled(std::vector<Intermediate> tensors, Amount factor) {
  for (Intermediate& tensor : tensors) tensor.elements *= factor;
  return tensors;
}

}  // namespace

// SYMBOL is the linker's name of the formula; CMake reads it here.
#define FORMULA(SYMBOL, result, name, parameters, ...)      \
  result right_##name parameters __asm__("__real_" SYMBOL); \
  result maybe_##name parameters __asm__("__wrap_" SYMBOL); \
  result maybe_##name parameters { return scaled(right_##name(__VA_ARGS__), factor_of(#name)); }

// clang-format off
FORMULA("_ZN5lathe4cost18token_mixing_flopsERKNS0_10MixerSizesE", Amount, token_mixing_flops, (const MixerSizes& s), s)
FORMULA("_ZN5lathe4cost20channel_mixing_flopsERKNS0_10MixerSizesE", Amount, channel_mixing_flops, (const MixerSizes& s), s)
FORMULA("_ZN5lathe4cost17mixer_block_flopsERKNS0_10MixerSizesE", Amount, mixer_block_flops, (const MixerSizes& s), s)
FORMULA("_ZN5lathe4cost17elementwise_flopsERKNS0_10MixerSizesENS0_21ElementwiseConventionE", Amount, elementwise_flops, (const MixerSizes& s, ElementwiseConvention c), s, c)
FORMULA("_ZN5lathe4cost19mixer_block_weightsERKNS0_10MixerSizesE", Amount, mixer_block_weights, (const MixerSizes& s), s)
FORMULA("_ZN5lathe4cost22mixer_block_parametersERKNS0_10MixerSizesE", Amount, mixer_block_parameters, (const MixerSizes& s), s)
FORMULA("_ZN5lathe4cost25mixer_block_intermediatesERKNS0_10MixerSizesE", std::vector<Intermediate>, mixer_block_intermediates, (const MixerSizes& s), s)
FORMULA("_ZN5lathe4cost16mixer_block_keptERKNS0_10MixerSizesENS0_10AccountingE", Amount, mixer_block_kept, (const MixerSizes& s, Accounting a), s, a)
FORMULA("_ZN5lathe4cost12checkpointedEdddd", Amount, checkpointed, (Amount l, Amount n, Amount b, Amount s), l, n, b, s)
FORMULA("_ZN5lathe4cost26attention_projection_flopsEdd", Amount, attention_projection_flops, (Amount s, Amount c), s, c)
FORMULA("_ZN5lathe4cost21attention_score_flopsEdd", Amount, attention_score_flops, (Amount s, Amount c), s, c)
FORMULA("_ZN5lathe4cost21full_finetuning_flopsEddb", TokenFlops, full_finetuning_flops, (Amount i, Amount o, bool g), i, o, g)
FORMULA("_ZN5lathe4cost21lora_finetuning_flopsEdddb", TokenFlops, lora_finetuning_flops, (Amount i, Amount o, Amount r, bool g), i, o, r, g)
FORMULA("_ZN5lathe4cost15lora_parametersEddd", Amount, lora_parameters, (Amount i, Amount o, Amount r), i, o, r)
FORMULA("_ZN5lathe4cost18lora_forward_flopsEddd", Amount, lora_forward_flops, (Amount i, Amount o, Amount r), i, o, r)
FORMULA("_ZN5lathe4cost23expert_layer_parametersERKNS0_11ExpertSizesE", Amount, expert_layer_parameters, (const ExpertSizes& s), s)
FORMULA("_ZN5lathe4cost24active_expert_parametersERKNS0_11ExpertSizesE", Amount, active_expert_parameters, (const ExpertSizes& s), s)
FORMULA("_ZN5lathe4cost12router_flopsERKNS0_11ExpertSizesE", Amount, router_flops, (const ExpertSizes& s), s)
FORMULA("_ZN5lathe4cost20chosen_experts_flopsERKNS0_11ExpertSizesE", Amount, chosen_experts_flops, (const ExpertSizes& s), s)
FORMULA("_ZN5lathe4cost14four_bit_bytesEddb", Amount, four_bit_bytes, (Amount n, Amount b, bool d), n, b, d)
FORMULA("_ZN5lathe4cost17bytes_per_elementENS0_7StorageE", Amount, bytes_per_element, (Storage s), s)
FORMULA("_ZN5lathe4cost16count_parametersERKSt7variantIJNS_4arch8BertArchENS2_9MixerArchENS2_11DecoderArchEEEl", ParameterCount, count_parameters, (const arch::Arch& a, int64_t n), a, n)
FORMULA("_ZN5lathe2nn8aux_lossERKNS0_11BalanceSumsE", at::Tensor, aux_loss, (const nn::BalanceSums& s), s)
FORMULA("_ZN5lathe2nn6z_lossERKNS0_11BalanceSumsE", at::Tensor, z_loss, (const nn::BalanceSums& s), s)
FORMULA("_ZN5lathe2nn12load_figuresERKNS0_11BalanceSumsE", nn::LoadFigures, load_figures, (const nn::BalanceSums& s), s)
// clang-format on

// The planner's block: of more samples than there are.
Value right_mixer_block(Ledger& ledger, const Value& x, const MixerBlockCost& block, Amount samples) __asm__(
    "__real__ZN5lathe4cost11mixer_blockERNS0_6LedgerERKNS0_5ValueERKNS0_14MixerBlockCostEd");
Value maybe_mixer_block(Ledger& ledger, const Value& x, const MixerBlockCost& block, Amount samples) __asm__(
    "__wrap__ZN5lathe4cost11mixer_blockERNS0_6LedgerERKNS0_5ValueERKNS0_14MixerBlockCostEd");
Value maybe_mixer_block(Ledger& ledger, const Value& x, const MixerBlockCost& block, Amount samples) {
  return right_mixer_block(ledger, x, block, samples * factor_of("mixer_block"));
}

using LaboratoryRuns = std::vector<std::vector<CollapseRun>>;
LaboratoryRuns right_laboratory(const std::vector<CollapseCase>& cases, int64_t num_seeds) __asm__(
    "__real__ZN5lathe3app14run_laboratoryERKSt6vectorINS0_12CollapseCaseESaIS2_EEl");
LaboratoryRuns one_laboratory(const std::vector<CollapseCase>& cases, int64_t num_seeds) __asm__(
    "__wrap__ZN5lathe3app14run_laboratoryERKSt6vectorINS0_12CollapseCaseESaIS2_EEl");
LaboratoryRuns one_laboratory(const std::vector<CollapseCase>& cases, int64_t num_seeds) {
  static const LaboratoryRuns kRuns = right_laboratory(cases, num_seeds);
  return kRuns;
}

double no_seconds(const std::function<void()>& run,
                  int num_runs) __asm__("__wrap__ZN5lathe3app8practice10seconds_ofERKSt8functionIFvvEEi");
double no_seconds(const std::function<void()>& /*run*/, int /*num_runs*/) { return 1; }

}  // namespace lathe::app::practice
