#include <gmock/gmock.h>

#include "lathe/nn/checkpoint.h"
#include "lathe/nn/moe_experts.h"
#include "moe_testing.h"

namespace lathe::nn {
namespace {

using lathe::testing::expect_close;
using lathe::testing::expect_gradients;
using lathe::testing::expect_identical;
using ::testing::ElementsAre;
using testing::fill_updates;
using testing::filled_bank;
using testing::gradients;
using testing::kHidden;
using testing::kWidth;
using testing::message_of;
using testing::ramp;
using testing::some_routing;

std::vector<std::string> trained_names(const ExpertBank& bank) {
  std::vector<std::string> names;
  for (const auto& item : bank->named_parameters()) {
    if (item.value().requires_grad()) names.push_back(item.key());
  }
  return names;
}

// Every expert on its own, with ranks of its own; expert 1 has none in its down projection.
void adapt_experts(ExpertBankImpl& bank, double dropout = 0) {
  for (int64_t e = 0; e < 3; ++e) {
    bank.adapt_expert(e, {"gate_proj", 1 + e, 1.5, dropout});
    bank.adapt_expert(e, {"up_proj", 2, 0.5, dropout});
    if (e != 1) bank.adapt_expert(e, {"down_proj", 3, 2, dropout});
  }
}

void adapt_parameters(ExpertBankImpl& bank) { bank.adapt_parameters({{"gate_up_proj", 2, 1.5}, {"down_proj", 3, 2}}); }

void expect_equals_merged(ExpertBank bank, const std::vector<Tensor>& trained) {
  EXPECT_FALSE(bank->up_weight.requires_grad());
  const Routing routing = some_routing();
  const Tensor x = ramp({4, kWidth}, 0.9, 0.1, at::kDouble).requires_grad_();
  ExpertBank merged = filled_bank(3);
  merged->up_weight.set_data(bank->dense_weight("gate_up_proj"));
  merged->down_weight.set_data(bank->dense_weight("down_proj"));
  EXPECT_FALSE(at::equal(merged->up_weight, bank->up_weight));
  expect_close(bank->forward(x, routing), merged->forward(x, routing), 1e-12, 1e-12);
  const auto actual = gradients(bank->forward(x, routing), {x, routing.gate_A}),
             expected = gradients(merged->forward(x, routing), {x, routing.gate_A});
  for (size_t i = 0; i < actual.size(); ++i) expect_close(actual[i], expected[i], 1e-12, 1e-12);
  expect_gradients([&] { return bank->forward(x, routing); }, trained);
}

TEST(ExpertUpdates, OfEachExpertEqualThoseInItsWeight) {
  ExpertBank bank = filled_bank(3);
  adapt_experts(*bank);
  expect_equals_merged(bank, fill_updates(*bank));
}

TEST(ExpertUpdates, OfWholeParametersEqualThoseInTheirWeights) {
  ExpertBank bank = filled_bank(3);
  adapt_parameters(*bank);
  expect_equals_merged(bank, fill_updates(*bank));
}

// A's rows go by expert, B's columns by rank.
TEST(ExpertUpdates, OfWholeParametersAreLaidOutAsPefts) {
  ExpertBank bank = filled_bank(3);
  adapt_parameters(*bank);
  fill_updates(*bank);
  EXPECT_THAT(trained_names(bank),
              ElementsAre("lora_A.weight", "lora_B.weight", "base_layer.lora_A.weight", "base_layer.lora_B.weight"));
  const auto parameters = bank->named_parameters();
  const Tensor A = parameters["lora_A.weight"], B = parameters["lora_B.weight"];
  EXPECT_EQ(A.sizes(), at::IntArrayRef({3 * 3, kHidden}));
  EXPECT_EQ(B.sizes(), at::IntArrayRef({kWidth, 3 * 3}));
  const Tensor dense = bank->dense_weight("down_proj");
  for (int64_t e = 0; e < 3; ++e) {
    const Tensor update = at::mm(B.slice(1, e, 9, 3), A.narrow(0, 3 * e, 3)).detach() * 2;
    expect_close(dense[e], bank->down_weight[e].detach() + update, 1e-14, 1e-14);
  }
}

TEST(ExpertUpdates, HaveTheNamesOfLinearLayersOneByOne) {
  ExpertBank bank = filled_bank(3);
  bank->adapt_expert(2, {"down_proj", 4, 1});
  EXPECT_THAT(trained_names(bank), ElementsAre("2.down_proj.lora_A.weight", "2.down_proj.lora_B.weight"));
  ExpertBank mixtral(ExpertBankOptions(3, kWidth, kHidden).linear_names({"w1", "w3", "w2"}));
  mixtral->adapt_expert(1, {"w3", 4, 1});
  EXPECT_THAT(trained_names(mixtral), ElementsAre("1.w3.lora_A.weight", "1.w3.lora_B.weight"));
  EXPECT_EQ(mixtral->updates()[0].first_row, kHidden);
  EXPECT_EQ(message_of([&] {
              mixtral->adapt_expert(0, {"up_proj", 2, 1});
            }),
            "ExpertBank: expected a projection of gate_up_proj, w1, w3, w2, got up_proj");
}

TEST(ExpertUpdates, StartAtZeroFromCounters) {
  ExpertBank bank(ExpertBankOptions(3, kWidth, kHidden)), other(ExpertBankOptions(3, kWidth, kHidden));
  bank->initialise(4);
  other->initialise(4);
  const Tensor x = ramp({4, kWidth});
  const Routing routing = some_routing(at::kFloat);
  const Tensor before = bank->forward(x, routing);
  adapt_experts(*bank);
  adapt_experts(*other);
  bank->initialise_updates(1, "blocks.0.");
  other->initialise_updates(1, "blocks.0.");
  expect_identical(bank->forward(x, routing), before);
  const Tensor A = bank->updates()[0].lora_A->weight;
  expect_identical(A, other->updates()[0].lora_A->weight);
  other->initialise_updates(1, "blocks.1.");
  EXPECT_FALSE(at::equal(A, other->updates()[0].lora_A->weight));
  EXPECT_LE(A.abs().max().item<double>(), 1 / std::sqrt(static_cast<double>(kWidth)));
}

TEST(ExpertUpdates, MergeUnmergeAndSwitchOff) {
  for (const bool whole : {false, true}) {
    ExpertBank bank = filled_bank(3);
    const Tensor x = ramp({4, kWidth}, 0.9, 0.1, at::kDouble);
    const Tensor without = bank->forward(x, some_routing());
    whole ? adapt_parameters(*bank) : adapt_experts(*bank);
    fill_updates(*bank);
    const Tensor with = bank->forward(x, some_routing());
    EXPECT_FALSE(at::allclose(with, without));
    bank->merge();
    expect_close(bank->forward(x, some_routing()), with, 1e-12, 1e-12);
    EXPECT_EQ(message_of([&] { bank->merge(); }), "ExpertBank: expected unmerged updates, got merged ones");
    bank->unmerge();
    expect_close(bank->forward(x, some_routing()), with, 1e-12, 1e-12);
    bank->set_enabled(false);
    expect_close(bank->forward(x, some_routing()), without, 1e-12, 1e-12);
    expect_identical(bank->dense_weight("down_proj"), bank->down_weight.detach());
  }
}

// The masks of a pass are drawn again in its backward pass and in a recomputation, another pass draws others.
TEST(ExpertUpdates, DropTheirInputsByCounters) {
  ExpertBank bank = filled_bank(3);
  adapt_experts(*bank, 0.5);
  const std::vector<Tensor> trained = fill_updates(*bank);
  const Routing routing = some_routing();
  const Tensor x = ramp({4, kWidth}, 0.9, 0.1, at::kDouble).requires_grad_();
  const auto pass = [&](uint64_t key) {
    const DropoutStream stream(key);
    return bank->forward(x, routing);
  };
  bank->eval();
  const Tensor kept = pass(1);
  bank->train();
  EXPECT_FALSE(at::allclose(pass(1), kept));
  EXPECT_FALSE(at::allclose(pass(1), pass(2)));
  std::vector<Tensor> inputs = trained;
  inputs.insert(inputs.end(), {x, routing.gate_A});
  expect_gradients([&] { return pass(1); }, inputs);
  const auto plain = gradients(pass(1), inputs);
  const DropoutStream stream(1);
  const auto again =
      gradients(checkpoint([&](const std::vector<Tensor>& in) { return bank->forward(in[0], routing); }, {x}), inputs);
  for (size_t i = 0; i < plain.size(); ++i) expect_identical(again[i], plain[i]);
}

TEST(ExpertUpdates, TrainUnderActivationCheckpointingToTheSameBits) {
  for (const bool whole : {false, true}) {
    ExpertBank bank(ExpertBankOptions(3, 20, 37));
    bank->initialise(4);
    if (whole) {
      adapt_parameters(*bank);
    } else {
      adapt_experts(*bank);
    }
    std::vector<Tensor> inputs = fill_updates(*bank, at::kFloat);
    const Routing routing = some_routing(at::kFloat);
    const Tensor x = ramp({4, 20}).requires_grad_();
    inputs.push_back(x);
    const auto plain = gradients(bank->forward(x, routing), inputs);
    for (const Recompute policy : {Recompute::Full, Recompute::Elementwise}) {
      const auto again = gradients(
          checkpoint([&](const std::vector<Tensor>& in) { return bank->forward(in[0], routing); }, {x}, policy),
          inputs);
      for (size_t i = 0; i < plain.size(); ++i) expect_identical(again[i], plain[i]);
    }
  }
}

TEST(ExpertUpdates, RefuseWhatCannotBeAdapted) {
  ExpertBank bank = filled_bank(3);
  adapt_parameters(*bank);
  EXPECT_EQ(message_of([&] {
              bank->adapt_expert(0, {"up_proj", 2, 1});
            }),
            "ExpertBank: up_proj is adapted already, as gate_up_proj");
  ExpertBank other = filled_bank(3);
  other->adapt_expert(1, {"gate_proj", 2, 1});
  other->adapt_expert(2, {"gate_proj", 2, 1});
  EXPECT_EQ(message_of([&] {
              other->adapt_expert(1, {"gate_up_proj", 2, 1});
            }),
            "ExpertBank: gate_up_proj is adapted already, as gate_proj");
  EXPECT_EQ(message_of([&] {
              other->adapt_expert(3, {"down_proj", 2, 1});
            }),
            "ExpertBank: expected an expert below 3, got 3");
  EXPECT_EQ(message_of([&] {
              other->adapt_expert(0, {"query", 2, 1});
            }),
            "ExpertBank: expected a projection of gate_up_proj, gate_proj, up_proj, down_proj, got query");
  EXPECT_EQ(message_of([&] { other->adapt_expert(0, {"down_proj", 0, 1}); }), "ExpertBank: expected rank >= 1, got 0");
  EXPECT_EQ(message_of([&] {
              other->adapt_parameters({{"down_proj", 2, 1, 0.5}});
            }),
            "ExpertBank: expected no dropout for updates of all experts, got 0.5");
  EXPECT_EQ(message_of([&] { other->dense_weight("up_proj"); }),
            "ExpertBank: expected gate_up_proj or down_proj, got up_proj");
}

}  // namespace
}  // namespace lathe::nn
