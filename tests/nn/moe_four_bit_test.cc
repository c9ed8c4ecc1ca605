#include "lathe/nn/checkpoint.h"
#include "lathe/nn/moe_experts.h"
#include "moe_testing.h"

namespace lathe::nn {
namespace {

using lathe::testing::expect_close;
using lathe::testing::expect_identical;
using testing::fill_updates;
using testing::gradients;
using testing::message_of;
using testing::ramp;
using testing::some_routing;

constexpr int64_t kBankWidth = 20, kBankHidden = 37;  // no whole number of blocks

struct FourBitBank {
  explicit FourBitBank(ExpertActivation activation, bool double_quant = false) {
    const auto options = ExpertBankOptions(3, kBankWidth, kBankHidden)
                             .activation(activation)
                             .bias(activation != ExpertActivation::SwiGLU);
    bank = ExpertBank(options);
    decoded = ExpertBank(options);
    bank->initialise(4);
    for (const std::string& projection : bank->projections()) {
      const Tensor dense = bank->dense_weight(projection).clone();
      bank->quantize(projection, NF4LinearOptions().double_quant(double_quant));
      for (int64_t e = 0; e < 3; ++e) {
        NF4Linear layer = bank->four_bit_layers(projection)[static_cast<size_t>(e)];
        layer->quantize(dense[e]);
      }
    }
    for (Tensor& parameter : bank->parameters()) parameter.requires_grad_(false);
    decoded->up_weight.set_data(bank->dense_weight(bank->projections()[0]));
    decoded->down_weight.set_data(bank->dense_weight("down_proj"));
    if (decoded->up_bias.defined()) {
      decoded->up_bias.set_data(bank->up_bias);
      decoded->down_bias.set_data(bank->down_bias);
    }
    for (Tensor& parameter : decoded->parameters()) parameter.requires_grad_(false);
  }
  ExpertBank bank{nullptr}, decoded{nullptr};
};

TEST(FourBitExperts, ComputeWhatTheirDecodedWeightsDo) {
  for (const auto activation : {ExpertActivation::SwiGLU, ExpertActivation::Gelu}) {
    for (const bool double_quant : {false, true}) {
      FourBitBank banks(activation, double_quant);
      const Routing routing = some_routing(at::kFloat);
      const Tensor x = ramp({4, kBankWidth}).requires_grad_();
      const Tensor y = banks.bank->forward(x, routing, {7, 0.4f}),
                   expected = banks.decoded->forward(x, routing, {7, 0.4f});
      // Sums of at most 74 products of order 1, taken in another order.
      expect_close(y, expected, 1e-5, 1e-5);
      const auto grads = gradients(y, {x, routing.gate_A}), wanted = gradients(expected, {x, routing.gate_A});
      for (size_t i = 0; i < grads.size(); ++i) expect_close(grads[i], wanted[i], 1e-5, 1e-5);
    }
  }
}

TEST(FourBitExperts, AreNoParametersAndOccupyFourBits) {
  FourBitBank banks(ExpertActivation::SwiGLU);
  EXPECT_TRUE(banks.bank->parameters().empty());
  EXPECT_FALSE(banks.bank->up_weight.defined());
  int64_t bytes = 0;
  for (const auto& item : banks.bank->named_buffers()) {
    if (item.key().ends_with(".base_layer.weight")) bytes += item.value().nbytes();
  }
  EXPECT_EQ(bytes, 3 * 3 * kBankWidth * kBankHidden / 2);
  EXPECT_TRUE(banks.bank->named_buffers().contains("2.down_proj.base_layer.absmax"));
}

TEST(FourBitExperts, CarryUpdatesAndRecomputeToTheSameBits) {
  FourBitBank banks(ExpertActivation::SwiGLU);
  for (ExpertBank bank : {banks.bank, banks.decoded}) {
    for (int64_t e = 0; e < 3; ++e) bank->adapt_expert(e, {"gate_proj", 2, 0.5});
    for (int64_t e = 0; e < 3; ++e) bank->adapt_expert(e, {"down_proj", 2, 0.5});
  }
  const Routing routing = some_routing(at::kFloat);
  const Tensor x = ramp({4, kBankWidth}).requires_grad_();
  const auto results = [&](ExpertBank& bank, bool recomputed) {
    std::vector<Tensor> inputs = fill_updates(*bank, at::kFloat);
    inputs.insert(inputs.end(), {x, routing.gate_A});
    const auto run = [&bank, &routing](const std::vector<Tensor>& in) { return bank->forward(in[0], routing); };
    return gradients(recomputed ? checkpoint(run, {x}) : run({x}), inputs);
  };
  const auto four = results(banks.bank, false), again = results(banks.bank, true),
             dense = results(banks.decoded, false);
  for (size_t i = 0; i < four.size(); ++i) {
    expect_identical(again[i], four[i]);
    expect_close(four[i], dense[i], 1e-5, 1e-5);
  }
}

TEST(FourBitExperts, RefuseASecondTimeAndMerging) {
  FourBitBank banks(ExpertActivation::SwiGLU);
  EXPECT_EQ(message_of([&] { banks.bank->quantize("down_proj", NF4LinearOptions()); }),
            "ExpertBank: down_proj is in four bits already");
  EXPECT_EQ(message_of([&] { banks.bank->merge(); }),
            "ExpertBank: expected dense weights to merge into, got four bits");
  ExpertBank empty(ExpertBankOptions(3, kBankWidth, kBankHidden));
  empty->quantize("gate_up_proj", NF4LinearOptions());
  EXPECT_EQ(message_of([&] { empty->dense_weight("gate_up_proj"); }),
            "NF4Linear: expected a weight, got none (quantize() or set_packed() gives one)");
}

}  // namespace
}  // namespace lathe::nn
