#include "lathe/models/bert.h"

#include "lathe/adapters/lora.h"
#include "lathe/arch/targets.h"
#include "lathe/models/load.h"
#include "small_bert.h"

namespace lathe::models {
namespace {

using testing::expect_close;
using testing::expect_identical;
using testing::TemporaryDirectory;

struct LoadedBert {
  explicit LoadedBert(const TemporaryDirectory& directory) {
    const auto model_directory = formats::ModelDirectory::open(testing::write_small_bert(directory));
    arch = arch::read_model_config(model_directory.config_path()).arch;
    model = build_text_classifier(arch, 2);
    load_weights(*model, arch::match_checkpoint(model_directory, arch, 2), 7);
  }
  arch::Arch arch;
  std::shared_ptr<TextClassifier> model;
};

TokenBatch sample_batch(const std::vector<std::vector<int64_t>>& ids) {
  std::vector<std::vector<int64_t>> types;
  for (const auto& sample : ids) types.emplace_back(sample.size(), 0);
  return pack_tokens(ids, types);
}

const std::vector<std::vector<int64_t>> kSamples = {{2, 5, 9, 11, 3}, {2, 3}, {2, 30, 31, 7, 8, 9, 10, 3}};

TEST(BertForSequenceClassification, HasTheNamesOfTheArchitecturesList) {
  const auto arch = arch::Arch(arch::BertArch{.vocab_size = 40,
                                              .hidden_size = 16,
                                              .num_hidden_layers = 2,
                                              .num_attention_heads = 4,
                                              .intermediate_size = 24,
                                              .max_position_embeddings = 32,
                                              .type_vocab_size = 2,
                                              .classifier_dropout = std::nullopt,
                                              .experts = std::nullopt});
  const auto model = build_text_classifier(arch, 5);
  const auto expected = arch::classifier_parameters(arch, 5);
  const auto parameters = model->named_parameters();
  ASSERT_EQ(parameters.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(parameters[i].key(), expected[i].name);
    EXPECT_EQ(parameters[i].value().sizes().vec(), expected[i].shape);
    EXPECT_TRUE(nn::is_hollow(parameters[i].value())) << expected[i].name;
    EXPECT_FALSE(parameters[i].value().requires_grad());
  }
  const auto linears = arch::classifier_linears(arch, 5);
  const auto slots = nn::named_slots(*model);
  ASSERT_EQ(slots.size(), linears.size());
  std::set<std::string> paths;
  for (const auto& slot : slots) paths.insert(slot.path);
  for (const auto& linear : linears) EXPECT_TRUE(paths.contains(linear.path)) << linear.path;
}

TEST(BertForSequenceClassification, GivesEachSampleTheSameLogitsInAnyBatch) {
  const TemporaryDirectory directory;
  LoadedBert bert(directory);
  const at::NoGradGuard no_grad;
  const Tensor together = bert.model->forward(sample_batch(kSamples), {});
  for (size_t i = 0; i < kSamples.size(); ++i) {
    // Only the order of a product's sums may differ with the number of rows.
    expect_close(bert.model->forward(sample_batch({kSamples[i]}), {}), together.narrow(0, static_cast<int64_t>(i), 1),
                 1e-5, 1e-6);
  }
}

TEST(BertLayer, FirstRowsAloneEqualThoseOfAllRows) {
  const TemporaryDirectory directory;
  LoadedBert bert(directory);
  auto layer = std::dynamic_pointer_cast<BertLayer>(bert.model->named_modules("", false)["bert.encoder.layer.1"]);
  ASSERT_NE(layer, nullptr);
  const TokenBatch batch = sample_batch(kSamples);
  const Tensor x = testing::ramp({15, 16});
  const at::NoGradGuard no_grad;
  const Tensor all = layer->forward(x, batch, {}), first = layer->forward_first(x, batch, {});
  expect_close(first, all.index_select(0, torch::tensor({0, 5, 7})), 1e-5, 1e-6);
}

TEST(BertForSequenceClassification, DrawsTheSameMasksForTheSameKeyOnly) {
  const TemporaryDirectory directory;
  LoadedBert bert(directory);
  const at::NoGradGuard no_grad;
  const auto logits = [&](uint64_t key) {
    return bert.model->forward(sample_batch(kSamples), {.training = true, .key = key});
  };
  expect_identical(logits(1), logits(1));
  EXPECT_FALSE(at::equal(logits(1), logits(2)));
  EXPECT_FALSE(at::equal(logits(1), bert.model->forward(sample_batch(kSamples), {})));
}

TEST(BertForSequenceClassification, FusedGradientsEqualTheComposedFloat64Ones) {
  const TemporaryDirectory directory;
  std::vector<std::map<std::string, Tensor>> gradients;
  for (const bool in_double : {false, true}) {
    LoadedBert bert(directory);
    for (auto& item : bert.model->named_parameters()) {
      if (in_double) item.value().set_data(item.value().to(at::kDouble));
      item.value().requires_grad_(true);
    }
    const Tensor logits = bert.model->forward(sample_batch(kSamples), {.training = true, .key = 5});
    (logits * testing::ramp(logits.sizes(), 1.3, 0.4, logits.scalar_type())).sum().backward();
    std::map<std::string, Tensor> found;
    for (auto& item : bert.model->named_parameters()) found[item.key()] = item.value().grad();
    gradients.push_back(std::move(found));
  }
  for (const auto& [name, expected] : gradients[1]) {
    const double scale = expected.abs().max().item<double>();
    // Three layers of products of up to 24 terms, a GELU within 3e-7: 1e-4 of the largest gradient of the tensor.
    SCOPED_TRACE(name);
    expect_close(gradients[0][name], expected, 0, 1e-4 * scale + 1e-7);
  }
}

TEST(LoadWeights, CopiesOnlyWhatTrains) {
  const TemporaryDirectory directory;
  const auto model_directory = formats::ModelDirectory::open(testing::write_small_bert(directory));
  const auto arch = arch::read_model_config(model_directory.config_path()).arch;
  auto model = build_text_classifier(arch, 2);
  auto parameters = model->named_parameters();
  parameters["bert.pooler.dense.weight"].requires_grad_(true);
  load_weights(*model, arch::match_checkpoint(model_directory, arch, 2), 7);
  const at::NoGradGuard no_grad;
  parameters["bert.pooler.dense.weight"].add_(1);
  parameters["bert.encoder.layer.0.output.dense.weight"].add_(1);  // a view of the file: the page is copied
  auto again = build_text_classifier(arch, 2);
  load_weights(*again, arch::match_checkpoint(model_directory, arch, 2), 7);
  expect_identical(again->named_parameters()["bert.encoder.layer.0.output.dense.weight"] + 1,
                   parameters["bert.encoder.layer.0.output.dense.weight"]);
  for (const auto& item : again->named_parameters()) EXPECT_FALSE(nn::is_hollow(item.value())) << item.key();
}

TEST(LoadWeights, DrawsANewHeadFromTheSeed) {
  const TemporaryDirectory directory;
  const auto model_directory = formats::ModelDirectory::open(testing::write_small_bert(directory));
  const auto arch = arch::read_model_config(model_directory.config_path()).arch;
  const auto head = [&](uint64_t seed) {
    auto model = build_text_classifier(arch, 500);
    load_weights(*model, arch::match_checkpoint(model_directory, arch, 500), seed);
    return model->named_parameters()["classifier.weight"].clone();
  };
  expect_identical(head(1), head(1));
  EXPECT_FALSE(at::equal(head(1), head(2)));
  // 8000 draws of N(0, 0.02²): four standard errors.
  EXPECT_NEAR(head(1).mean().item<double>(), 0, 4 * 0.02 / std::sqrt(8000.0));
  EXPECT_NEAR(head(1).std().item<double>(), 0.02, 4 * 0.02 / std::sqrt(16000.0));
}

// Dropout everywhere, adapters on two projections, one trained whole: gradients are the same bits under every policy.
TEST(BertForSequenceClassification, GivesTheSameGradientsUnderEveryLayerPolicy) {
  const TemporaryDirectory directory;
  const LoadedBert bert(directory);
  formats::AdapterConfig config;
  config.r = 3;
  config.lora_alpha = 6;
  config.lora_dropout = 0.2;
  config.target_modules = std::vector<std::string>{"query", "intermediate.dense"};
  const auto linears = arch::classifier_linears(bert.arch, 2);
  adapters::attach(*bert.model, arch::match_targets(linears, config, bert.arch, arch::origin_of_adapter("lora")),
                   config);
  adapters::initialise(*bert.model, 3);
  for (auto& item : bert.model->named_parameters()) {
    if (item.key().ends_with("lora_B.weight")) item.value().set_data(testing::ramp(item.value().sizes(), 0.2));
    if (item.key().starts_with("bert.encoder.layer.1.output")) item.value().requires_grad_(true);
  }
  bert.model->train();
  const auto gradients = [&](nn::LayerPolicy policy) {
    for (const auto& [name, parameter] : adapters::trainable_parameters(*bert.model)) parameter.mutable_grad().reset();
    const nn::DropoutStream stream(4);
    bert.model->forward(sample_batch(kSamples), {true, 11, policy}).square().sum().backward();
    std::vector<Tensor> result;
    for (const auto& [name, parameter] : adapters::trainable_parameters(*bert.model)) {
      EXPECT_TRUE(parameter.grad().defined()) << name;
      result.push_back(parameter.grad().clone());
    }
    return result;
  };
  const auto plain = gradients({});
  ASSERT_GE(plain.size(), 16u);
  using nn::Recompute;
  for (const nn::LayerPolicy policy :
       {nn::LayerPolicy{Recompute::Elementwise}, {Recompute::Full}, {Recompute::Full, 2}, {Recompute::Full, 1, 1}}) {
    const auto again = gradients(policy);
    for (size_t i = 0; i < plain.size(); ++i) expect_identical(again[i], plain[i]);
  }
}

}  // namespace
}  // namespace lathe::models
