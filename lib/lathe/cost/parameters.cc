#include "lathe/cost/parameters.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace lathe::cost {
namespace {

// The kinds of parameters, by the first of these that stands in their names.
struct NamedKind {
  std::string_view part, kind;
};
constexpr std::array<NamedKind, 16> kKinds = {{{"orm.", "norms"},  // LayerNorm, q_norm, model.norm
                                               {"orm1.", "norms"},
                                               {"orm2.", "norms"},
                                               {"shared_expert", "experts"},
                                               {".experts.", "experts"},
                                               {".gate.", "router"},
                                               {"embed", "embeddings"},
                                               {"stem.", "embeddings"},
                                               {"attention", "attention"},
                                               {"self_attn", "attention"},
                                               {"mlp_tokens", "token mixing"},
                                               {"mlp_channels", "channel mixing"},
                                               {"head", "head"},
                                               {"classifier", "head"},
                                               {"pooler", "head"},
                                               {"", "mlp"}}};

std::string_view kind_of(const std::string& parameter) {
  const auto found = std::find_if(kKinds.begin(), kKinds.end(), [&](const NamedKind& named) {
    return parameter.find(named.part) != std::string::npos;
  });
  return found->kind;
}

// The part of its experts that a token meets.
Amount chosen_part(const arch::Arch& arch) {
  if (const auto* decoder = std::get_if<arch::DecoderArch>(&arch); decoder != nullptr && decoder->moe)
    return static_cast<Amount>(decoder->moe->top_k) / static_cast<Amount>(decoder->moe->num_experts);
  const auto& experts = arch::mlp_experts(arch);
  return experts ? static_cast<Amount>(experts->top_k) / static_cast<Amount>(experts->num_experts) : 1;
}

}  // namespace

Amount num_elements(const std::vector<int64_t>& shape) {
  Amount product = 1;
  for (const int64_t size : shape) product *= static_cast<Amount>(size);
  return product;
}

ParameterCount count_parameters(const arch::Arch& arch, int64_t num_labels) {
  ParameterCount count;
  Amount routed = 0;
  for (const arch::ParameterSpec& parameter : arch::classifier_parameters(arch, num_labels)) {
    const Amount elements = num_elements(parameter.shape);
    count.total += elements;
    if (parameter.name.find(".experts.") != std::string::npos) routed += elements;
    const std::string_view kind = kind_of(parameter.name);
    const auto same = std::find_if(count.kinds.begin(), count.kinds.end(),
                                   [&](const auto& counted) { return counted.first == kind; });
    if (same == count.kinds.end()) {
      count.kinds.emplace_back(kind, elements);
    } else {
      same->second += elements;
    }
  }
  count.active = count.total - routed + routed * chosen_part(arch);
  return count;
}

}  // namespace lathe::cost
