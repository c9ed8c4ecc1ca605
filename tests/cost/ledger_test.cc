#include "lathe/cost/ledger.h"

#include <gtest/gtest.h>

#include "lathe/cost/ops.h"

namespace lathe::cost {
namespace {

LinearCost layer(const char* path, bool trains) {
  LinearCost linear{path, 8, 16};
  linear.trains = trains;
  return linear;
}

TEST(Ledger, CountsWhatLivesAndRemembersThePeak) {
  Ledger ledger;
  ledger.enter("first");
  {
    const Buffer a = ledger.allocate(100), b = ledger.allocate(50);
    EXPECT_EQ(ledger.live_bytes(), 150);
  }
  ledger.enter("second");
  const Buffer c = ledger.allocate(20);
  EXPECT_EQ(ledger.live_bytes(), 20);
  EXPECT_EQ(ledger.peak_bytes(), 150);
  EXPECT_EQ(ledger.peak_phase(), "first");
}

// 2 FLOPs per multiply-add: forward, gradient of the input, gradient of the weight; a frozen layer has no third.
TEST(Ledger, CountsThreeProductsForALayerThatTrainsAndOneForAFrozenFirstLayer) {
  for (const bool trains : {true, false}) {
    Ledger ledger;
    const Value x = ledger.tensor(4, 8);
    const Value y = linear(ledger, x, layer("l", trains));
    ledger.backward(y, ledger.allocate(4 * 16 * 4));
    EXPECT_EQ(ledger.flops(Pass::Forward, Part::Linear), 2 * 4 * 8 * 16);
    EXPECT_EQ(ledger.flops(Pass::Backward, Part::Linear), trains ? 2 * 4 * 8 * 16 : 0);
    EXPECT_EQ(ledger.gradient_bytes(), trains ? (8 * 16 + 16) * 4 : 0);
  }
}

// LoRA: 2 N r (in + out) forward; B's and A's gradients and what leads to them are 2 N r (2 out + in), and no gradient
// of a first layer's input.
TEST(Ledger, CountsAdapters) {
  Ledger ledger;
  LinearCost adapted = layer("l", false);
  adapted.rank = 2;
  const Value x = ledger.tensor(4, 8);
  const Value y = linear(ledger, x, adapted);
  ledger.backward(y, ledger.allocate(4 * 16 * 4));
  EXPECT_EQ(ledger.flops(Pass::Forward, Part::Adapter), 2 * 4 * 2 * (8 + 16));
  EXPECT_EQ(ledger.flops(Pass::Backward, Part::Adapter), 2 * 4 * 2 * (2 * 16 + 8));
  EXPECT_EQ(ledger.gradient_bytes(), 2 * (8 + 16) * 4);
}

TEST(Ledger, KeepsARegionsInputOnlyAndRunsItAgain) {
  Ledger ledger;
  const Value x = ledger.tensor(4, 8);
  const Amount before = ledger.live_bytes();
  Value y = ledger.checkpoint(x, [&](const Value& in) {
    Value h = linear(ledger, in, layer("first", true));
    LinearCost back{"second", 16, 8};
    back.trains = true;
    return linear(ledger, h, back);
  });
  EXPECT_EQ(ledger.live_bytes() - before, 4 * 8 * 4 + kGeneratorStateBytes);  // y, and what draws again
  const Amount forward = ledger.flops(Pass::Forward, Part::Linear);
  ledger.backward(y, ledger.allocate(4 * 8 * 4));
  EXPECT_EQ(ledger.flops(Pass::Forward, Part::Linear), forward);
  EXPECT_EQ(ledger.flops(Pass::Recompute, Part::Linear), forward);
  EXPECT_EQ(ledger.gradient_bytes(), (2 * 8 * 16 + 16 + 8) * 4);
}

// cost.md: 10^12 parameters are a number like any other.
TEST(Ledger, DoesNotOverflow) {
  Ledger ledger;
  LinearCost huge{"l", 1e12, 1e12};
  huge.trains = true;
  const Value x = ledger.tensor(1e9, 1e12);
  const Value y = linear(ledger, x, huge);
  EXPECT_DOUBLE_EQ(ledger.flops(Pass::Forward, Part::Linear), 2e33);
  EXPECT_GE(ledger.peak_bytes(), 8e21);
}

}  // namespace
}  // namespace lathe::cost
