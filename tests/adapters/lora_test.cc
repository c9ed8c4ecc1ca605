#include "lathe/adapters/lora.h"

#include "expect_error.h"
#include "lathe/models/load.h"
#include "lathe/models/text_classifier.h"
#include "small_bert.h"

namespace lathe::adapters {
namespace {

using ::testing::ElementsAre;
using testing::error_text;
using testing::expect_close;
using testing::expect_identical;
using ::testing::HasSubstr;
using testing::TemporaryDirectory;

formats::AdapterConfig query_config() {
  formats::AdapterConfig config;
  config.r = 3;
  config.lora_alpha = 6;
  config.target_modules = std::vector<std::string>{"query"};
  config.modules_to_save = {"classifier"};
  config.task_type = "SEQ_CLS";
  return config;
}

struct AdaptedBert {
  explicit AdaptedBert(const TemporaryDirectory& directory, uint64_t seed = 1) {
    const auto model_directory = formats::ModelDirectory::open(testing::write_small_bert(directory));
    const auto arch = arch::read_model_config(model_directory.config_path()).arch;
    model = models::build_text_classifier(arch, 2);
    attach(*model,
           arch::match_targets(arch::classifier_linears(arch, 2), config, arch, arch::origin_of_adapter("lora")),
           config);
    initialise(*model, seed);
    saved = train_modules(*model, config.modules_to_save);
    models::load_weights(*model, arch::match_checkpoint(model_directory, arch, 2), seed);
    model->named_parameters()["classifier.weight"].set_data(
        testing::ramp({2, 16}));  // large enough to see an adapter's effect
  }
  Tensor logits() {
    const at::NoGradGuard no_grad;
    return model->forward(models::pack_tokens({{2, 5, 9, 3}, {2, 7, 3}}, {{0, 0, 0, 0}, {0, 0, 0}}), {});
  }
  void fill_B() {
    double phase = 0;
    for (const auto& [path, layer] : lora_layers(*model))
      layer->lora_B->weight.set_data(testing::ramp(layer->lora_B->weight.sizes(), 0.9, phase += 1));
  }
  formats::AdapterConfig config = query_config();
  std::shared_ptr<models::TextClassifier> model;
  std::vector<std::string> saved;
};

TEST(Attach, TrainsOnlyAdaptersAndSavedModules) {
  const TemporaryDirectory directory;
  AdaptedBert bert(directory);
  std::vector<std::string> names;
  for (const auto& [name, parameter] : trainable_parameters(*bert.model)) names.push_back(name);
  EXPECT_THAT(names, ElementsAre("bert.encoder.layer.0.attention.self.query.lora_A.weight",
                                 "bert.encoder.layer.0.attention.self.query.lora_B.weight",
                                 "bert.encoder.layer.1.attention.self.query.lora_A.weight",
                                 "bert.encoder.layer.1.attention.self.query.lora_B.weight",
                                 "bert.encoder.layer.2.attention.self.query.lora_A.weight",
                                 "bert.encoder.layer.2.attention.self.query.lora_B.weight", "classifier.weight",
                                 "classifier.bias"));
}

TEST(Initialise, IsAFunctionOfTheSeedAndTheName) {
  const TemporaryDirectory directory;
  AdaptedBert a(directory, 1), b(directory, 1), c(directory, 2);
  const auto first = [](AdaptedBert& bert, size_t layer) {
    return lora_layers(*bert.model)[layer].second->lora_A->weight;
  };
  expect_identical(first(a, 0), first(b, 0));
  EXPECT_FALSE(at::equal(first(a, 0), first(c, 0)));
  EXPECT_FALSE(at::equal(first(a, 0), first(a, 1)));
  EXPECT_LE(first(a, 0).abs().max().item<double>(), 1 / std::sqrt(16.0));
}

TEST(Merge, ChangesNothingThatIsComputed) {
  const TemporaryDirectory directory;
  AdaptedBert bert(directory);
  bert.fill_B();
  const Tensor before = bert.logits();
  merge(*bert.model);
  expect_close(bert.logits(), before, 1e-4, 1e-5);
  unmerge(*bert.model);
  expect_close(bert.logits(), before, 1e-4, 1e-5);
  set_enabled(*bert.model, false);
  EXPECT_FALSE(at::allclose(bert.logits(), before, 1e-3, 1e-4));
}

TEST(Save, WritesWhatLoadReadsBackToTheBit) {
  const TemporaryDirectory directory;
  AdaptedBert written(directory, 1), read(directory, 2);
  written.fill_B();
  std::filesystem::create_directory(directory / "adapter");
  save((directory / "adapter").string(), *written.model, written.config, {"no", "yes"});
  ASSERT_FALSE(at::equal(read.logits(), written.logits()));
  load((directory / "adapter").string(), *read.model, read.saved);
  expect_identical(read.logits(), written.logits());
  EXPECT_THAT(*formats::read_labels((directory / "adapter").string()), ElementsAre("no", "yes"));
}

TEST(Load, RefusesMissingForeignAndMisshapenTensorsAllAtOnce) {
  const TemporaryDirectory directory;
  AdaptedBert bert(directory);
  std::filesystem::create_directory(directory / "adapter");
  save((directory / "adapter").string(), *bert.model, bert.config, {});
  io::NamedTensors tensors;
  for (const auto& [name, parameter] : trainable_parameters(*bert.model)) {
    if (name != "classifier.bias") tensors.emplace_back("base_model.model." + name, parameter.detach());
  }
  tensors[0].second = testing::ramp({4, 16});  // another rank
  tensors.erase(tensors.begin() + 3);          // a B
  tensors.emplace_back("base_model.model.bert.lm_head.weight", testing::ramp({2}));
  io::write_safetensors((directory / "adapter/adapter_model.safetensors").string(), tensors);
  const std::string text =
      error_text(ErrorKind::Data, [&] { load((directory / "adapter").string(), *bert.model, bert.saved); });
  EXPECT_THAT(text, HasSubstr("layer.0.attention.self.query.lora_A.weight: has another shape"));
  EXPECT_THAT(text, HasSubstr("layer.1.attention.self.query.lora_B.weight: is missing"));
  EXPECT_THAT(text, HasSubstr("classifier.bias: is missing")) << "modules_to_save names the classifier";
  EXPECT_THAT(text, HasSubstr("bert.lm_head.weight: belongs to no adapted module"));
}

TEST(Attach, RefusesAPathThatIsNoSlot) {
  const TemporaryDirectory directory;
  AdaptedBert bert(directory);
  EXPECT_THROW(attach(*bert.model, {{{"bert.nowhere", 16, 16}, 2, 2}}, bert.config), c10::ValueError);
}

}  // namespace
}  // namespace lathe::adapters
