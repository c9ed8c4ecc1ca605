#include "practice/lora.h"

#include <cmath>
#include <string>

#include "lathe/base/random.h"
#include "lathe/nn/counter_tensors.h"

namespace lathe::app::practice {

nn::Linear make_linear(int64_t in_features, int64_t out_features, const char* name) {
  nn::Linear linear(in_features, out_features, /*bias=*/false);
  linear->weight.set_data(drawn({out_features, in_features}, name) / std::sqrt(static_cast<double>(in_features)));
  return linear;
}

nn::LoRALinear make_lora(const std::shared_ptr<nn::LinearBase>& base, nn::LoRALinearOptions options, const char* name,
                         bool start_at_zero) {
  nn::LoRALinear lora(base, options);
  const double bound = 1 / std::sqrt(static_cast<double>(base->in_features()));
  const Tensor uniform =
      nn::counter_uniform(lora->lora_A->weight.sizes(), make_key(name_key("practice"), name_key(name)));
  lora->lora_A->weight.set_data((uniform * 2 - 1).mul(bound).to(at::kFloat));
  if (!start_at_zero) lora->lora_B->weight.set_data(drawn(lora->lora_B->weight.sizes(), name) * 0.02);
  return lora;
}

}  // namespace lathe::app::practice
