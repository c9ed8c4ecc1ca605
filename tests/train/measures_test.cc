#include "lathe/train/measures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

namespace lathe::train {
namespace {

TEST(Scores, CountsWhatIsLikeliestAndWhatIsAmongFive) {
  Scores scores(7);
  scores.add(std::array<float, 7>{9, 0, 0, 0, 0, 0, 0}.data(), 0);
  scores.add(std::array<float, 7>{1, 2, 3, 4, 5, 6, 7}.data(), 2);  // the fifth
  scores.add(std::array<float, 7>{1, 2, 3, 4, 5, 6, 7}.data(), 1);  // the sixth
  scores.add(std::array<float, 7>{3, 3, 3, 3, 3, 3, 3}.data(), 4);  // of equals the first count more: the fifth
  scores.add(std::array<float, 7>{3, 3, 3, 3, 3, 3, 3}.data(), 5);
  const Evaluation result = scores.evaluation(10);
  EXPECT_EQ(result.samples, 5);
  EXPECT_DOUBLE_EQ(result.eval_loss, 2);
  EXPECT_DOUBLE_EQ(result.accuracy, 0.2);
  EXPECT_DOUBLE_EQ(result.top5_accuracy.value(), 0.6);
  EXPECT_EQ(result.confusion[0][0], 1);
  EXPECT_EQ(result.confusion[2][6], 1);
  EXPECT_EQ(result.confusion[4][0], 1);
  EXPECT_FALSE(Scores(5).evaluation(0).top5_accuracy);
}

TEST(Scores, KeepsTheMistakesThatAreWorstInOrder) {
  Scores scores(2);
  const auto add = [&](float margin, int64_t label) { scores.add(std::array<float, 2>{margin, 0}.data(), label); };
  add(5, 0);  // right
  for (int i = 0; i < 40; ++i) add(static_cast<float>(1 + i % 20), 1);
  const Evaluation result = scores.evaluation(0);
  ASSERT_EQ(result.worst.size(), kWorst);
  for (size_t i = 0; i < kWorst; ++i) {
    const double margin = 20 - static_cast<double>(i / 2);
    EXPECT_EQ(result.worst[i].sample, static_cast<int64_t>(margin + (i % 2 == 0 ? 0 : 20))) << "equal ones in order";
    EXPECT_DOUBLE_EQ(result.worst[i].truth_probability, std::exp(-margin) / (1 + std::exp(-margin)));
    EXPECT_DOUBLE_EQ(result.worst[i].predicted_probability, 1 / (1 + std::exp(-margin)));
    EXPECT_EQ(result.worst[i].truth, 1);
    EXPECT_EQ(result.worst[i].predicted, 0);
  }
}

TEST(Scores, ClassesHaveTheirSamplesAndAccuracy) {
  Scores scores(3);
  const auto add = [&](int64_t predicted, int64_t truth) {
    std::array<float, 3> logits{};
    logits[static_cast<size_t>(predicted)] = 1;
    scores.add(logits.data(), truth);
  };
  add(0, 0);
  add(1, 0);
  add(2, 1);
  const Json json = classes_to_json(scores.evaluation(0), {"a", "b", "c"});
  EXPECT_EQ(json["class_samples"], Json({2, 1, 0}));
  EXPECT_EQ(json["class_accuracy"], Json({0.5, 0.0, nullptr}));
  EXPECT_EQ(json["confusion"], Json({{1, 1, 0}, {0, 0, 1}, {0, 0, 0}}));
}

TEST(Evaluation, ComputesAccuracyAndF1) {
  const ConfusionCounts two = {{50, 10}, {5, 35}};
  EXPECT_DOUBLE_EQ(accuracy_of(two), 0.85);
  EXPECT_DOUBLE_EQ(f1_of(two), 70.0 / 85);
  const ConfusionCounts three = {{2, 0, 0}, {0, 1, 1}, {0, 0, 0}};
  EXPECT_DOUBLE_EQ(f1_of(three), (1 + 2.0 / 3 + 0) / 3);
  EXPECT_DOUBLE_EQ(f1_of({{3, 0}, {0, 0}}), 0) << "undefined is 0";
}

}  // namespace
}  // namespace lathe::train
