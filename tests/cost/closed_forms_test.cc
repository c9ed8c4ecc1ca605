#include "lathe/cost/closed_forms.h"

#include <gtest/gtest.h>

#include "lathe/cost/ops.h"

namespace lathe::cost {
namespace {

constexpr MixerSizes kSizes{.sequence_length = 12, .width = 20, .tokens_hidden_size = 7, .channels_hidden_size = 50};

MixerBlockCost block_of(const MixerSizes& sizes) {
  const auto layer = [](const char* path, Amount in_features, Amount out_features) {
    LinearCost linear{path, in_features, out_features};
    linear.trains = true;
    return linear;
  };
  return {.channels = sizes.width,
          .norm1 = {"norm1", true},
          .norm2 = {"norm2", true},
          .tokens_fc1 = layer("a", sizes.sequence_length, sizes.tokens_hidden_size),
          .tokens_fc2 = layer("b", sizes.tokens_hidden_size, sizes.sequence_length),
          .channels_fc1 = layer("c", sizes.width, sizes.channels_hidden_size),
          .channels_fc2 = layer("d", sizes.channels_hidden_size, sizes.width)};
}

// A block of 3 samples through the ledger, whose input needs a gradient.
struct Followed {
  Ledger ledger;
  Amount kept = 0;

  explicit Followed(const MixerSizes& sizes) {
    Value x = ledger.tensor(3 * sizes.sequence_length, sizes.width);
    ledger.record(x, {}, true, [](const Buffer&) { return std::vector<Buffer>(); });
    const Amount before = ledger.live_bytes();
    const Value y = mixer_block(ledger, x, block_of(sizes), 3);
    kept = ledger.live_bytes() - before;
    ledger.backward(y, ledger.allocate(y.buffer->bytes()));
  }
};

TEST(ClosedForms, AgreeWithTheLedgerOnAMixerBlock) {
  const Followed block(kSizes);
  EXPECT_EQ(block.ledger.flops(Pass::Forward, Part::Linear), 3 * mixer_block_flops(kSizes));
  EXPECT_EQ(block.ledger.flops(Pass::Backward, Part::Linear), 2 * 3 * mixer_block_flops(kSizes));
  EXPECT_EQ(block.ledger.gradient_bytes(), kFloatBytes * mixer_block_parameters(kSizes));
  // The ledger keeps the output and not the input: as many elements.
  EXPECT_EQ(block.kept, 3 * kFloatBytes * mixer_block_kept(kSizes, Accounting::Autograd));
}

TEST(ClosedForms, AgreeWithTheLedgerOnAnAdaptedLayer) {
  for (const bool input_gradient : {true, false}) {
    LinearCost linear{"l", 24, 40};
    linear.rank = 3;
    Ledger ledger;
    Value x = ledger.tensor(5, 24);
    if (input_gradient) ledger.record(x, {}, true, [](const Buffer&) { return std::vector<Buffer>(); });
    const Value y = cost::linear(ledger, x, linear);
    EXPECT_EQ(ledger.flops(Pass::Forward, Part::Adapter), 5 * lora_forward_flops(24, 40, 3));
    ledger.backward(y, ledger.allocate(y.buffer->bytes()));
    const TokenFlops expected = lora_finetuning_flops(24, 40, 3, input_gradient);
    const auto spent = [&](Part part) {
      return ledger.flops(Pass::Forward, part) + ledger.flops(Pass::Backward, part);
    };
    EXPECT_EQ(spent(Part::Linear), 5 * (expected.forward + expected.input_gradient));
    EXPECT_EQ(spent(Part::Adapter), 5 * expected.adapter);
    EXPECT_EQ(expected.weight_gradient, 0);
    EXPECT_EQ(lora_parameters(24, 40, 3), linear.adapter_parameters());
  }
}

TEST(ClosedForms, AgreeWithTheLedgerOnALayerThatTrains) {
  LinearCost linear{"l", 24, 40};
  linear.trains = true;
  Ledger ledger;
  const Value x = ledger.tensor(5, 24);
  const Value y = cost::linear(ledger, x, linear);
  ledger.backward(y, ledger.allocate(y.buffer->bytes()));
  EXPECT_EQ(ledger.flops(Pass::Forward, Part::Linear) + ledger.flops(Pass::Backward, Part::Linear),
            5 * full_finetuning_flops(24, 40, /*input_gradient=*/false).total());
}

// The identities that the exam's answers rest on: D_S = 4 S and D_C = 4 C make each hidden tensor four units.
TEST(ClosedForms, CountActivationsInUnits) {
  const MixerSizes sizes{
      .sequence_length = 128, .width = 1024, .tokens_hidden_size = 512, .channels_hidden_size = 4096};
  const auto units = [&](Accounting accounting) { return mixer_block_kept(sizes, accounting) / sizes.unit(); };
  const Amount statistics = 4 * sizes.sequence_length / sizes.unit();
  EXPECT_EQ(units(Accounting::Textbook), 22);
  EXPECT_EQ(units(Accounting::Hidden), 16);
  EXPECT_EQ(units(Accounting::Autograd), 20 + statistics);
  EXPECT_EQ(units(Accounting::WithoutGelu), 12 + statistics);
  EXPECT_EQ(units(Accounting::WithoutGeluAndNorm), 10 + statistics);
  EXPECT_EQ(checkpointed(24, 6, 1, 20), 124);
}

TEST(ClosedForms, CountExperts) {
  const ExpertSizes sizes{.width = 4096, .hidden_size = 14336, .num_experts = 8, .top_k = 2};
  EXPECT_EQ(expert_layer_parameters(sizes) - active_expert_parameters(sizes), 6 * 3 * 4096.0 * 14336);
  EXPECT_EQ(chosen_experts_flops(sizes), 2 * (active_expert_parameters(sizes) - 4096 * 8));
  EXPECT_EQ(router_flops(sizes), 2 * 4096 * 8);
}

}  // namespace
}  // namespace lathe::cost
