#include <gmock/gmock.h>

#include <ATen/Context.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <set>

#include "practice/measure.h"
#include "practice/question.h"
#include "practice/working.h"
#include "wrong_formulas.h"

namespace lathe::app::practice {
namespace {

TEST(Questions, CoverTheExamInItsOrder) {
  std::vector<std::string> ids;
  for (const Question* question : questions()) ids.emplace_back(question->id);
  EXPECT_THAT(ids,
              ::testing::ElementsAre("1a", "1b", "1c", "2a", "2b", "2c", "3a", "3b", "4a", "4b", "4c", "4d", "4e"));
}

TEST(Working, JudgesNumbersToTheLastUnit) {
  Working working({});
  const Amount derived = working.derive("text", "formula", 178'120'883'699'712, Unit::Flops);
  working.claim_equal("equal", derived, 178'120'883'699'712);
  working.claim_equal("one less", derived, 178'120'883'699'711);
  working.claim_close("near", derived, derived * (1 + 0.9e-6), 1e-6);
  working.claim_close("far", derived, derived * (1 + 1.1e-6), 1e-6);
  working.claim_close("not a number", derived, NAN, 1e-6);
  std::vector<int> held;
  for (const Claim& claim : working.answer.claims) held.push_back(claim.holds);
  EXPECT_THAT(held, ::testing::ElementsAre(1, 0, 1, 0, 0));
  EXPECT_FALSE(all_hold(working.answer));
}

TEST(Working, WritesAmountsInBothSystems) {
  EXPECT_EQ(amount_text(257'748'369'408, Unit::Bytes), "257,748,369,408 B (257.7 GB, 240.05 GiB)");
  EXPECT_EQ(amount_text(1000, Unit::Bytes), "1,000 B");
  EXPECT_EQ(amount_text(1024, Unit::Bytes), "1,024 B (1.024 KB, 1 KiB)");
  EXPECT_EQ(amount_text(59'373'627'899'904, Unit::Flops), "59,373,627,899,904 FLOPs (59.37 TFLOPs)");
  EXPECT_EQ(amount_text(0.015625, Unit::Share), "0.015625 (1.56 %)");
  EXPECT_EQ(amount_text(-1234567), "-1,234,567");
  EXPECT_EQ(filled("4 x {} x {} = {{}", {128, 1024, 7}), "4 x 128 x 1,024 = {7");
}

TEST(ByteMeter, CountsToTheByteAndRemembersThePeak) {
  const ByteMeter meter;
  const at::Tensor kept = at::empty({3}, at::kFloat);
  { const at::Tensor passing = at::empty({100}, at::kByte); }
  EXPECT_EQ(meter.live(), 12);
  EXPECT_EQ(meter.peak(), 112);
  EXPECT_THAT(meter.blocks(), ::testing::ElementsAre(12));
  const ByteMeter later;
  EXPECT_EQ(later.live(), 0);
  EXPECT_EQ(later.peak(), 0);
}

// Every claim that compares with a number of the derivation stands on that number: were the formula wrong by a half
// (claims on what is drawn allow 15 %), each would fail. (That they hold when nothing is wrong is
// tests/apps/practice.py's to show.)
class WrongFormula : public ::testing::TestWithParam<const Question*> {};

TEST_P(WrongFormula, FailsEveryClaimOnIt) {
  const Answer answer = GetParam()->answer({.perturbation = 0.5});
  int64_t num_claims = 0;
  for (const Claim& claim : answer.claims) {
    if (!claim.of_derivation) continue;
    ++num_claims;
    EXPECT_FALSE(claim.holds) << claim.text << ": expected " << claim.derived << ", measured " << claim.measured;
  }
  EXPECT_GE(num_claims, 1);
}

std::vector<const Question*> all_but(const std::set<std::string>& ids) {
  std::vector<const Question*> chosen;
  for (const Question* question : questions()) {
    if (!ids.contains(question->id)) chosen.push_back(question);
  }
  return chosen;
}

std::string id_of(const ::testing::TestParamInfo<const Question*>& info) { return info.param->id; }

INSTANTIATE_TEST_SUITE_P(Question, WrongFormula, ::testing::ValuesIn(all_but({})), id_of);

// The formulas of component cost and of routing's balance, one by one: where a question uses it, a claim of the
// question fails.
class WrongCost : public ::testing::TestWithParam<const Question*> {
 protected:
  void TearDown() override { formulas().wrong.clear(); }
};

TEST_P(WrongCost, FailsAClaim) {
  formulas().called.clear();
  EXPECT_TRUE(all_hold(GetParam()->answer({})));
  std::set<std::string> used = formulas().called;
  // 4c takes weights, gradients and moments of a plan, but no activation.
  if (GetParam()->id == std::string("4c")) used.erase("mixer_block");
  EXPECT_GE(used.size(), 1);
  for (const std::string& formula : used) {
    formulas().wrong = formula;
    EXPECT_FALSE(all_hold(GetParam()->answer({}))) << formula << " is wrong and no claim fails";
  }
}

// 2b rests on no cost.
INSTANTIATE_TEST_SUITE_P(Question, WrongCost, ::testing::ValuesIn(all_but({"2b"})), id_of);

TEST(Products, LeaveTheAnswersWhereLibTorchMakesThem) {
  const bool enabled = at::globalContext().userEnabledMkldnn();
  at::globalContext().setUserEnabledMkldnn(false);
  for (const Question* question : questions()) {
    if (std::set<std::string>{"1a", "1b", "2a", "2c", "4e"}.contains(question->id)) {
      for (const Claim& claim : question->answer({}).claims)
        EXPECT_TRUE(claim.holds) << question->id << " " << claim.text << ": " << claim.derived << ", "
                                 << claim.measured;
    }
  }
  at::globalContext().setUserEnabledMkldnn(enabled);
}

}  // namespace
}  // namespace lathe::app::practice
