#include "lathe/recipe/recipe.h"

#include <filesystem>

#include "expect_error.h"
#include "lathe/base/files.h"
#include "lathe/base/random.h"
#include "lathe/recipe/resolve.h"

namespace lathe::recipe {
namespace {

using ::testing::ElementsAre;
using testing::error_text;
using ::testing::HasSubstr;

constexpr const char* kMinimal = R"(model:
  path: m
  task: classification
adapter:
  type: lora
  rank: 8
  alpha: 16
data:
  train: t.jsonl
optimizer:
  lr: 0.001
training:
  epochs: 1
  batch_size: 4
output:
  dir: out
)";

std::string recipe_refusal(const std::vector<std::string>& overrides) {
  return error_text(ErrorKind::Config, [&] { parse(kMinimal, "r.yaml", "/base", overrides); });
}

TEST(Recipe, HasTheDefaultsOfTheSpecification) {
  const Recipe recipe = parse(kMinimal, "r.yaml", "/base");
  EXPECT_EQ(recipe.model.path.resolved, "/base/m");
  EXPECT_EQ(recipe.optimizer.schedule, ScheduleType::Cosine);
  EXPECT_EQ(recipe.optimizer.weight_decay, 0.01);
  EXPECT_EQ(recipe.optimizer.clip_grad_norm, 1.0);
  EXPECT_EQ(recipe.training.gradient_accumulation_steps, 1);
  EXPECT_TRUE(recipe.data.shuffle);
  EXPECT_EQ(recipe.training.keep_checkpoints, 2);
  EXPECT_EQ(recipe.data.field("text"), "text");
}

TEST(Recipe, ResolvedReadsBackEqual) {
  const std::vector<std::vector<std::string>> variants = {
      {},
      {"adapter.target_modules=[query, value]"},
      {"adapter.target_modules=\".*query\"", "adapter.rank_pattern={\"layer.1\": 4}"},
      {"adapter={type: none}"},
      {"~adapter.rank", "~adapter.alpha", "adapter.from=/x/adapter"},
      {"~training.epochs", "training.max_steps=7", "data.labels=[a, \"1\", \"no\"]"},
      {"model.task=image_classification", "data.fields={path: file, label: class}",
       "data.image={size: [8, 12], augment: [flip, mixup], mixup_alpha: 0.4, mean: [0.1, 0.2, 0.3]}"},
      {"data.eval=[a.jsonl, b.jsonl]", "data.fields={text: body}", "model.dropout=0", "model.max_length=64"}};
  for (const auto& overrides : variants) {
    const Recipe recipe = parse(kMinimal, "r.yaml", "/base", overrides);
    const std::string resolved = to_yaml(recipe);
    const Recipe again = parse(resolved, "resolved.yaml", "/elsewhere");
    EXPECT_EQ(to_yaml(again), resolved);
    EXPECT_THAT(changed_keys(recipe, again), ElementsAre());
  }
}

TEST(Recipe, NamesTheKeysInWhichTwoDiffer) {
  const Recipe a = parse(kMinimal, "r.yaml", "/base"),
               b = parse(kMinimal, "r.yaml", "/base", {"optimizer.lr=0.5", "adapter.rank=4"});
  EXPECT_THAT(changed_keys(a, b), ElementsAre("adapter.rank", "optimizer.lr"));
}

TEST(Recipe, RefusesImpossibleCombinations) {
  EXPECT_THAT(recipe_refusal({"training.max_steps=3"}),
              HasSubstr("training.max_steps: excludes training.epochs (~training.epochs among the words"));
  EXPECT_THAT(recipe_refusal({"~training.epochs"}),
              HasSubstr("r.yaml:13:3: training.epochs: epochs or max_steps is required"));
  EXPECT_THAT(recipe_refusal({"~adapter.rank"}), HasSubstr("adapter.rank: is required unless adapter.from is given"));
  EXPECT_THAT(recipe_refusal({"adapter.type=none"}), HasSubstr("adapter.rank: has no meaning with adapter.type: none"));
  EXPECT_THAT(recipe_refusal({"adapter={type: none}", "quant.type=nf4"}),
              HasSubstr("quant.type: needs an adapter: a weight in four bits cannot train"));
  EXPECT_THAT(recipe_refusal({"quant.type=nf4", "quant.blocksize=48"}),
              HasSubstr("quant.blocksize: expected 32, 64, 128, ..., 4096, got 48"));
  EXPECT_THAT(recipe_refusal({"data.eval=e", "data.eval_fraction=0.1"}),
              HasSubstr("data.eval_fraction: excludes data.eval"));
  EXPECT_THAT(recipe_refusal({"data.labels=[a, a]"}), HasSubstr("data.labels: has \"a\" twice"));
  EXPECT_THAT(recipe_refusal({"optimizer.betas=[0.9]"}), HasSubstr("optimizer.betas: expected two numbers in [0, 1)"));
  EXPECT_THAT(recipe_refusal({"optimizer.schedule=linear", "optimizer.min_lr_ratio=0.1"}),
              HasSubstr("optimizer.min_lr_ratio: needs schedule cosine or wsd"));
  EXPECT_THAT(recipe_refusal({"optimizer.nesterov=true"}), HasSubstr("optimizer.nesterov: needs type: sgd"));
  EXPECT_THAT(recipe_refusal({"training.batch_size=auto"}),
              HasSubstr("training.global_batch_size: is required with batch_size: auto"));
  EXPECT_THAT(recipe_refusal({"training.global_batch_size=4"}),
              HasSubstr("training.global_batch_size: needs batch_size: auto"));
  EXPECT_THAT(recipe_refusal({"data.fields={txet: a}"}),
              HasSubstr("data.fields: unknown field \"txet\" (did you mean text?"));
  EXPECT_THAT(recipe_refusal({"~model.path"}), HasSubstr("model.path: is required unless model.init is random"));
  EXPECT_THAT(recipe_refusal({"training.early_stopping={patience: 2, measure: f1}"}),
              HasSubstr("training.early_stopping: needs data.eval"));
}

TEST(Recipe, RemovesOnlyKeysThatRecipesHave) {
  parse(kMinimal, "r.yaml", "/base", {"~model.dropout", "~data.image.size", "~adapter.rank_pattern.query", "~quant"});
  EXPECT_THAT(recipe_refusal({"~optimzer.lr"}), HasSubstr("override: optimzer: unknown key (did you mean optimizer?"));
  EXPECT_THAT(recipe_refusal({"~optimizer.rl"}), HasSubstr("override: optimizer.rl: unknown key"));
  EXPECT_THAT(recipe_refusal({"~optimizer.lr=3"}), HasSubstr("expected key=value or ~key"));
}

TEST(Recipe, SaysWhatIsNotSupportedYet) {
  EXPECT_THAT(recipe_refusal({"model.task=causal_lm"}),
              HasSubstr("model.task: is not supported yet (supported: classification, image_classification)"));
  EXPECT_THAT(recipe_refusal({"data.packing=true"}), HasSubstr("data.packing: is not supported yet"));
  EXPECT_THAT(recipe_refusal({"adapter.init=pissa"}), HasSubstr("adapter.init: is not supported yet"));
  EXPECT_THAT(recipe_refusal({"training.device=cuda:0"}), HasSubstr("training.device: is not supported yet"));
}

TEST(Recipe, ComplainsOnceAboutOneMistake) {
  EXPECT_EQ(recipe_refusal({"~adapter.rank", "~adapter.alpha", "adapter.init=pissa", "adapter.from=/x"}),
            "override: adapter.init: excludes adapter.from");
  EXPECT_EQ(recipe_refusal({"adapter.rank=many"}),
            "override: adapter.rank: expected an integer in [1, 65536], got \"many\"");
  EXPECT_EQ(recipe_refusal({"training.batch_size=0"}),
            "override: training.batch_size: expected an integer in [1, 1000000000] or auto, got 0");
  EXPECT_THAT(recipe_refusal({"training.activation_checkpointing={every: 0}"}), HasSubstr(", got {every: 0}"));
  EXPECT_THAT(recipe_refusal({"training.activation_checkpointing={budget: -1 GiB}"}),
              HasSubstr(", got {budget: \"-1 GiB\"}"));
}

TEST(ReadyRecipes, AllLoadAndBeginWithTheirPurpose) {
  ASSERT_GE(ready_recipes().size(), 2u);
  for (const ReadyRecipe& ready : ready_recipes()) {
    EXPECT_FALSE(ready.purpose.empty()) << ready.name;
    const Recipe recipe = load(ready.name);
    EXPECT_EQ(to_yaml(parse(to_yaml(recipe), "resolved.yaml", "/")), to_yaml(recipe)) << ready.name;
  }
  EXPECT_THAT(error_text(ErrorKind::Config, [] { load("quikstart"); }),
              HasSubstr("no ready recipe of that name (did you mean quickstart?"));
}

TEST(ReadyRecipes, AreTheFilesBelowRecipes) {
  size_t files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(LATHE_RECIPES)) {
    if (entry.path().extension() != ".yaml") continue;
    ++files;
    const std::string name = entry.path().lexically_relative(LATHE_RECIPES).replace_extension().string();
    ASSERT_NE(find_ready_recipe(name), nullptr) << name;
    EXPECT_EQ(find_ready_recipe(name)->text, read_file(entry.path(), 1 << 20));
    EXPECT_NO_THROW(load(entry.path().string())) << name;
  }
  EXPECT_EQ(files, ready_recipes().size());
}

TEST(Recipe, SurvivesMutations) {
  const std::string& original = find_ready_recipe("quickstart")->text;
  constexpr std::string_view kBytes("\0\n\t :-[]{}&*!|>'\"#%@`,?~=0a\xC3\xA9\xFF", 30);
  static_assert(kBytes.back() == '\xFF');
  int accepted = 0;
  for (uint64_t round = 0; round < 5000; ++round) {
    std::string text = original;
    const uint64_t key = make_key(round);
    for (uint64_t i = 0; i < 1 + round % 4; ++i) {
      const size_t at = random_bits(key, 3 * i) % text.size();
      const char byte = kBytes[random_bits(key, 3 * i + 1) % kBytes.size()];
      switch (random_bits(key, 3 * i + 2) % 3) {
        case 0:
          text[at] = byte;
          break;
        case 1:
          text.insert(at, 1, byte);
          break;
        default:
          text.erase(at, 1 + random_bits(key, i) % 8);
      }
      if (text.empty()) text = "a";
    }
    try {
      parse(text, "r.yaml", "/base");
      ++accepted;
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), 2);
    }
  }
  EXPECT_GT(accepted, 100);  // most mutations of comments are harmless
  EXPECT_LT(accepted, 4900);
}

constexpr const char* kRandom = "model.init=random";

std::string tiny_arch(const std::string& more = "") {
  return "model.arch={model_type: bert, vocab_size: 40, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, "
         "intermediate_size: 24" +
         more + "}";
}

TEST(ResolveModel, DrawsAModelInTheShapeOfArch) {
  const Recipe recipe = parse(kMinimal, "r.yaml", "/base", {"~model.path", kRandom, tiny_arch()});
  const ResolvedModel model = resolve_model(recipe);
  EXPECT_TRUE(model.random);
  EXPECT_EQ(std::get<arch::BertArch>(model.config.arch).hidden_size, 16);
  EXPECT_EQ(model.targets.size(), 4U);
  for (const auto& item : model.match(3).items) EXPECT_EQ(item.tensor, nullptr);
  const Recipe again = parse(to_yaml(recipe), "resolved.yaml", "/elsewhere");
  EXPECT_TRUE(changed_keys(recipe, again).empty());
}

const std::vector<std::string> kImages = {
    "~model.path", kRandom, "model.task=image_classification",
    "model.arch={model_type: mixer, image_size: 8, num_channels: 1, patch_size: 4, num_blocks: 1, hidden_size: 8}"};

TEST(ResolveModel, TakesThePreprocessingOfTheRecipe) {
  const auto resolve = [](const std::string& override_text) {
    std::vector<std::string> overrides = kImages;
    overrides.push_back(override_text);
    return resolve_model(parse(kMinimal, "r.yaml", "/base", overrides));
  };
  const arch::ImageInput given = *resolve("data.image={mean: [0.25], std: [0.5], resize: bilinear}").config.image;
  EXPECT_EQ(given.mean, std::vector<double>{0.25});
  EXPECT_EQ(given.std, std::vector<double>{0.5});
  EXPECT_EQ(given.interpolation, "bilinear");
  const arch::ImageInput usual = *resolve("data.image={size: 8}").config.image;
  EXPECT_EQ(usual.mean, std::vector<double>{0.5});
  EXPECT_EQ(usual.crop_pct, 1);
  const auto refusal = [&](const std::string& override_text) {
    return error_text(ErrorKind::Config, [&] { resolve(override_text); });
  };
  EXPECT_THAT(refusal("data.image={size: [8, 12]}"),
              HasSubstr("data.image.size: expected the model's 8 x 8, got [8, 12]"));
  EXPECT_THAT(refusal("data.image={mean: [0.1, 0.2, 0.3]}"),
              HasSubstr("data.image.mean: expected 1 numbers, one per channel of the model, got 3"));
  EXPECT_THAT(refusal("data.image={std: [0]}"), HasSubstr("data.image.std: expected numbers above 0"));
  EXPECT_THAT(refusal("data.image={mixup_alpha: 0.4}"), HasSubstr("data.image.mixup_alpha: needs mixup in augment"));
  EXPECT_THAT(refusal("data.image={augment: [rotate]}"), HasSubstr("flip, crop"));
  EXPECT_THAT(refusal("data.format=text_label"),
              HasSubstr("data.format: text_label has no meaning for task image_classification"));
  EXPECT_THAT(refusal("data.fields={text: body}"), HasSubstr("data.fields: unknown field \"text\""));
  EXPECT_THAT(refusal("model.max_length=7"), HasSubstr("model.max_length: has no meaning for images"));
  EXPECT_THAT(recipe_refusal({"data.format=idx"}), HasSubstr("idx has no meaning for task classification"));
  EXPECT_THAT(recipe_refusal({"data.image={size: 8}"}),
              HasSubstr("data.image: needs model.task: image_classification"));
}

TEST(ResolveModel, SaysWhatIsWrongWithArchAtItsPlace) {
  const auto refusal = [](const std::string& arch) {
    return error_text(ErrorKind::Config, [&] {
      resolve_model(parse(kMinimal, "r.yaml", "/base", {"~model.path", kRandom, arch}));
    });
  };
  EXPECT_THAT(refusal(tiny_arch(", hiden_act: gelu")),
              HasSubstr("override: model.arch.hiden_act: unknown key (did you mean hidden_act"));
  EXPECT_THAT(refusal("model.arch={model_type: mixer, image_size: 28, patch_size: 5, num_blocks: 1, hidden_size: 8}"),
              HasSubstr("override: model.arch.image_size: expected a multiple of the patch size 5, got 28"));
  EXPECT_THAT(refusal("model.arch={model_type: mixer, architecture: mixer_s32}"),
              HasSubstr("model.task: expected image_classification, got classification (the model is a mixer)"));
  EXPECT_THAT(recipe_refusal({tiny_arch()}), HasSubstr("model.arch: needs model.init: random"));
}

}  // namespace
}  // namespace lathe::recipe
