#include "lathe/arch/checkpoint.h"

#include <algorithm>
#include <functional>

#include "arch/tiny_bert.h"
#include "expect_error.h"
#include "formats/safetensors_bytes.h"

namespace lathe::arch {
namespace {

using formats::Dtype;
using formats::ModelDirectory;
using ::testing::AllOf;
using ::testing::EndsWith;
using testing::error_text;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::read_config;
using testing::safetensors_bytes;
using testing::TemporaryDirectory;
using testing::tiny_bert_config;

using Shapes = std::vector<std::pair<std::string, std::vector<int64_t>>>;

/// A model directory of zeros whose tensors are the tiny BERT's, changed by the test.
class MatchCheckpoint : public ::testing::Test {
 protected:
  MatchCheckpoint() : arch_(read_config(tiny_bert_config()).arch) {
    for (const ParameterSpec& spec : classifier_parameters(arch_, 3)) shapes_.emplace_back(spec.name, spec.shape);
    directory_.write("config.json", "{}");
  }
  void rename(const std::function<std::string(std::string)>& change) {
    for (auto& [name, shape] : shapes_) name = change(name);
  }
  void drop(const std::string& name) {
    std::erase_if(shapes_, [&](const auto& entry) { return entry.first == name; });
  }
  ModelDirectory open(Dtype dtype = Dtype::F32) {
    directory_.write("model.safetensors", safetensors_bytes(shapes_, dtype));
    return ModelDirectory::open(directory_.path().string());
  }
  /// What matching says, without the directory.
  std::string refusal(Dtype dtype = Dtype::F32) {
    const ModelDirectory model = open(dtype);
    std::string text = error_text(ErrorKind::Data, [&] { match_checkpoint(model, arch_, 3); });
    const std::string prefix = directory_.path().string() + "/";
    for (size_t at = text.find(prefix); at != std::string::npos; at = text.find(prefix)) text.erase(at, prefix.size());
    return text;
  }
  void expect_complete(bool has_head) {
    const ModelDirectory model = open();
    const CheckpointMatch match = match_checkpoint(model, arch_, 3);
    EXPECT_EQ(match.has_head, has_head);
    EXPECT_EQ(match.items.size(), classifier_parameters(arch_, 3).size());
    for (const CheckpointMatch::Item& item : match.items) {
      const bool head = item.parameter.name.starts_with("classifier.");
      EXPECT_EQ(item.tensor != nullptr, has_head || !head) << item.parameter.name;
      EXPECT_TRUE(item.tensor == nullptr || item.tensor->info.shape == item.parameter.shape) << item.parameter.name;
    }
  }

  Arch arch_;
  Shapes shapes_;
  TemporaryDirectory directory_;
};

std::string without_prefix(std::string name) { return name.starts_with("bert.") ? name.substr(5) : name; }

std::string with_greek_letters(std::string name) {
  for (const auto& [today, then] : {std::pair<std::string, std::string>("LayerNorm.weight", "LayerNorm.gamma"),
                                    {"LayerNorm.bias", "LayerNorm.beta"}}) {
    if (name.ends_with(today)) return name.substr(0, name.size() - today.size()) + then;
  }
  return name;
}

TEST_F(MatchCheckpoint, FindsAWholeClassifier) { expect_complete(true); }

TEST_F(MatchCheckpoint, FindsABareEncoderAndLeavesTheHeadNew) {
  drop("classifier.weight");
  drop("classifier.bias");
  rename(without_prefix);
  shapes_.emplace_back("embeddings.position_ids", std::vector<int64_t>{1, 12});
  expect_complete(false);
}

TEST_F(MatchCheckpoint, FindsAPretrainingCheckpointWithGreekLetters) {
  drop("classifier.weight");
  drop("classifier.bias");
  rename(with_greek_letters);
  shapes_.emplace_back("cls.predictions.bias", std::vector<int64_t>{40});
  shapes_.emplace_back("cls.seq_relationship.weight", std::vector<int64_t>{2, 16});
  expect_complete(false);
}

TEST_F(MatchCheckpoint, TakesEveryFloatingDtypeAndNoOther) {
  for (const Dtype dtype : {Dtype::F16, Dtype::BF16, Dtype::F64}) {
    const ModelDirectory model = open(dtype);
    EXPECT_TRUE(match_checkpoint(model, arch_, 3).has_head);
  }
  EXPECT_THAT(refusal(Dtype::U8), HasSubstr("classifier.weight: expected F32, F16, BF16 or F64, got U8"));
}

TEST_F(MatchCheckpoint, NamesExpertsThatDisagreeAreMissingOrLieOneByOne) {
  arch_ = read_config(tiny_bert_config({{"moe", {{"num_experts", 4}, {"top_k", 2}}}})).arch;
  shapes_.clear();
  for (const ParameterSpec& spec : classifier_parameters(arch_, 3)) shapes_.emplace_back(spec.name, spec.shape);
  expect_complete(true);
  const std::string experts = "bert.encoder.layer.0.moe.experts.";
  for (auto& [name, shape] : shapes_) {
    if (name == experts + "up_proj") shape[0] = 3;
    if (name == experts + "down_proj") shape[2] += 1;
  }
  drop("bert.encoder.layer.1.moe.experts.up_proj");
  shapes_.emplace_back("bert.encoder.layer.1.moe.experts.0.up_proj.weight", std::vector<int64_t>{24, 16});
  const std::string text = refusal();
  EXPECT_THAT(text, HasSubstr(experts + "up_proj: expected shape [4, "));
  EXPECT_THAT(text, HasSubstr(experts + "down_proj: expected shape [4, "));
  EXPECT_THAT(text, HasSubstr("bert.encoder.layer.1.moe.experts.up_proj: is missing"));
  EXPECT_THAT(text,
              HasSubstr("bert.encoder.layer.1.moe.experts.0.up_proj.weight: is not a tensor of this architecture"));
}

TEST_F(MatchCheckpoint, ReportsAllMistakesTogether) {
  drop("bert.pooler.dense.bias");
  shapes_[0].second = {41, 16};
  shapes_.emplace_back("bert.encoder.layer.2.output.dense.bias", std::vector<int64_t>{16});
  EXPECT_EQ(refusal(),
            "model.safetensors: bert.embeddings.word_embeddings.weight: expected shape [40, 16], got [41, 16]\n"
            "model.safetensors: bert.pooler.dense.bias: is missing\n"
            "model.safetensors: bert.encoder.layer.2.output.dense.bias: is not a tensor of this architecture (nothing "
            "is silently ignored)");
}

TEST_F(MatchCheckpoint, NeedsAHeadWholeOrNotAtAll) {
  drop("classifier.bias");
  EXPECT_EQ(refusal(), "model.safetensors: classifier.bias: is missing");
}

TEST_F(MatchCheckpoint, SaysThatTheHeadHasOtherLabels) {
  for (auto& [name, shape] : shapes_) {
    if (name.starts_with("classifier.")) shape[0] = 5;
  }
  EXPECT_EQ(refusal(),
            "model.safetensors: classifier.weight: expected shape [3, 16], got [5, 16] (the checkpoint's head has "
            "another number of labels)\nmodel.safetensors: classifier.bias: expected shape [3], got [5] (the "
            "checkpoint's head has another number of labels)");
}

TEST_F(MatchCheckpoint, RefusesATensorUnderTwoNames) {
  shapes_.emplace_back("pooler.dense.bias", std::vector<int64_t>{16});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("model.safetensors: pooler.dense.bias: is not a tensor of this architecture"),
                               Not(HasSubstr("\n"))));
}

TEST_F(MatchCheckpoint, BoundsItsMessage) {
  for (int i = 0; i < 1000; ++i) shapes_.emplace_back("t" + std::to_string(i), std::vector<int64_t>{1});
  const std::string text = refusal();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 39);
  EXPECT_THAT(text, EndsWith("(and 960 more)"));
}

}  // namespace
}  // namespace lathe::arch
