#include <ATen/ops/empty.h>

#include <algorithm>

#include "lathe/nn/moe_experts.h"

namespace lathe::nn {

ExpertGroups ExpertGroups::of(const Routing& routing) {
  const int64_t num_rows = routing.expert_A.numel();
  TORCH_CHECK_VALUE(routing.token_A.numel() == num_rows && routing.gate_A.numel() == num_rows,
                    "Routing: expected as many tokens and gates as experts = ", num_rows, ", got ",
                    routing.token_A.numel(), " and ", routing.gate_A.numel());
  const Tensor experts = routing.expert_A.contiguous(), tokens = routing.token_A.contiguous();
  const auto* expert = experts.const_data_ptr<int64_t>();
  const auto* token = tokens.const_data_ptr<int64_t>();
  ExpertGroups groups;
  groups.offsets.assign(static_cast<size_t>(routing.num_experts) + 1, 0);
  for (int64_t a = 0; a < num_rows; ++a) {
    TORCH_CHECK_VALUE(
        expert[a] >= 0 && expert[a] < routing.num_experts && token[a] >= 0 && token[a] < routing.num_tokens,
        "Routing: expected experts below ", routing.num_experts, " and tokens below ", routing.num_tokens,
        ", got expert ", expert[a], " and token ", token[a]);
    ++groups.offsets[static_cast<size_t>(expert[a]) + 1];
  }
  for (size_t e = 1; e < groups.offsets.size(); ++e) groups.offsets[e] += groups.offsets[e - 1];
  groups.order_A = at::empty({num_rows}, at::kLong);
  groups.token_A = at::empty({num_rows}, at::kLong);
  std::vector<int64_t> next = groups.offsets;
  for (int64_t a = 0; a < num_rows; ++a) {
    const int64_t row = next[static_cast<size_t>(expert[a])]++;
    groups.order_A.data_ptr<int64_t>()[row] = a;
    groups.token_A.data_ptr<int64_t>()[row] = token[a];
  }
  return groups;
}

int64_t ExpertGroups::most_rows() const {
  int64_t most = 0;
  for (size_t e = 1; e < offsets.size(); ++e) most = std::max(most, offsets[e] - offsets[e - 1]);
  return most;
}

}  // namespace lathe::nn
