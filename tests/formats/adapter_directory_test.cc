#include "lathe/formats/adapter_directory.h"

#include <algorithm>

#include "expect_error.h"
#include "formats/mutations.h"
#include "golden.h"
#include "lathe/base/files.h"
#include "lathe/base/json.h"
#include "temporary_directory.h"

namespace lathe::formats {
namespace {

using testing::error_text;
using testing::golden;
using ::testing::HasSubstr;
using testing::mutated;
using testing::TemporaryDirectory;

using Names = std::vector<std::string>;

/// What reading an adapter_config.json of this text says, without the file's name.
std::string config_refusal(const std::string& json) {
  const TemporaryDirectory directory;
  const std::string prefix = directory.write("adapter_config.json", json) + ": ";
  const std::string text = error_text(ErrorKind::Data, [&] { read_adapter_config(directory.path().string()); });
  return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
}

AdapterConfig read_config_text(const std::string& json) {
  const TemporaryDirectory directory;
  directory.write("adapter_config.json", json);
  return read_adapter_config(directory.path().string());
}

TEST(ReadAdapterConfig, ReadsWhatPeftSaved) {
  const AdapterConfig config = read_adapter_config(golden("formats/peft_adapter"));
  EXPECT_EQ(config.task_type, "SEQ_CLS");
  EXPECT_EQ(config.base_model_name_or_path, "");
  EXPECT_EQ(config.r, 2);
  EXPECT_EQ(config.lora_alpha, 8);
  EXPECT_EQ(config.lora_dropout, 0.05);
  EXPECT_TRUE(config.use_rslora);
  EXPECT_EQ(std::get<Names>(config.target_modules.value()), (Names{"query", "value"}));
  EXPECT_FALSE(config.exclude_modules.has_value());
  EXPECT_EQ(config.modules_to_save, (Names{"classifier", "score"}));
  EXPECT_EQ(config.rank_pattern, (std::vector<Pattern>{{"query", 3}}));
  EXPECT_EQ(config.alpha_pattern, (std::vector<Pattern>{{"value", 6}}));
}

TEST(ReadAdapterConfig, TakesEveryKeyOfPeftAtItsDefault) {
  const Json defaults = read_json_file(golden("formats/peft_defaults.json"));
  EXPECT_GT(defaults.size(), 35U);
  const AdapterConfig config = read_config_text(defaults.dump());
  EXPECT_EQ(config.r, 8);
  EXPECT_EQ(config.lora_alpha, 8);
  EXPECT_EQ(config.lora_dropout, 0);
  EXPECT_FALSE(config.use_rslora);
}

TEST(ReadAdapterConfig, HasPeftsDefaultsForAbsentKeys) {
  const AdapterConfig config = read_config_text(R"({"peft_type": "LORA"})");
  EXPECT_EQ(config.r, 8);
  EXPECT_EQ(config.lora_alpha, 8);
  EXPECT_FALSE(config.target_modules.has_value());
}

TEST(ReadAdapterConfig, KeepsARegexAndTheOrderOfPatterns) {
  const AdapterConfig config = read_config_text(
      R"({"peft_type": "LORA", "target_modules": ".*query", "exclude_modules": "x", "rank_pattern": {"z": 1, "a": 2},
          "alpha_pattern": {"b": 0.5, "a": 3}})");
  EXPECT_EQ(std::get<std::string>(config.target_modules.value()), ".*query");
  EXPECT_EQ(std::get<std::string>(config.exclude_modules.value()), "x");
  EXPECT_EQ(config.rank_pattern, (std::vector<Pattern>{{"z", 1}, {"a", 2}}));
  EXPECT_EQ(config.alpha_pattern, (std::vector<Pattern>{{"b", 0.5}, {"a", 3}}));
}

TEST(ReadAdapterConfig, RefusesWhatItCannotCompute) {
  const auto with = [](const std::string& key, const std::string& value) {
    return config_refusal(R"({"peft_type":"LORA",")" + key + "\":" + value + "}");
  };
  const std::string tail = " is not supported (it changes what the adapter computes; Lathe reads plain LoRA adapters)";
  for (const char* key : {"use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "ensure_weight_tying", "new_key"}) {
    EXPECT_EQ(with(key, "true"), std::string(key) + ": true" + tail);
    EXPECT_EQ(read_config_text(R"({"peft_type":"LORA",")" + std::string(key) + "\":false}").r, 8);
  }
  for (const char* key :
       {"layer_replication", "trainable_token_indices", "layers_to_transform", "alora_invocation_tokens"}) {
    EXPECT_EQ(with(key, "[1]"), std::string(key) + ": [...]" + tail);
    EXPECT_EQ(read_config_text(R"({"peft_type":"LORA",")" + std::string(key) + "\":[]}").r, 8);
  }
  for (const char* key : {"kasa_config", "arrow_config", "velora_config", "use_bdlora", "megatron_config"}) {
    EXPECT_EQ(with(key, "{\"k\":1}"), std::string(key) + ": {...}" + tail);
  }
  EXPECT_EQ(with("bias", "\"all\""), "bias: \"all\"" + tail);
  EXPECT_EQ(with("layers_pattern", "\"layer\""), "layers_pattern: \"layer\"" + tail);
  EXPECT_EQ(with("layers_to_transform", "0"), "layers_to_transform: 0" + tail);
  EXPECT_EQ(with("init_lora_weights", "\"pissa\""),
            "init_lora_weights: \"pissa\" is not supported: it has changed the base's weights (in PEFT: "
            "save_pretrained(DIR, path_initial_model_for_weight_conversion=...))");
  EXPECT_EQ(read_config_text(R"({"peft_type":"LORA","init_lora_weights":"gaussian"})").r, 8);
}

TEST(ReadAdapterConfig, RefusesWrongTypesAndRanges) {
  const auto with = [](const std::string& member) { return config_refusal(R"({"peft_type":"LORA",)" + member + "}"); };
  EXPECT_EQ(config_refusal("{}"), "peft_type: expected a string, got nothing");
  EXPECT_EQ(config_refusal(R"({"peft_type":"IA3"})"), "peft_type: \"IA3\" is not supported (supported: LORA)");
  EXPECT_EQ(with(R"("r":0)"), "r: expected an integer from 1 to 65536, got 0");
  EXPECT_EQ(with(R"("r":3.5)"), "r: expected an integer from 1 to 65536, got 3.5");
  EXPECT_EQ(with(R"("lora_alpha":0)"), "lora_alpha: expected a number above 0, got 0");
  EXPECT_EQ(with(R"("lora_dropout":1)"), "lora_dropout: expected a number in [0, 1), got 1");
  EXPECT_EQ(with(R"("use_rslora":1)"), "use_rslora: expected true or false, got 1");
  EXPECT_EQ(with(R"("target_modules":3)"), "target_modules: expected an array of strings, got 3");
  EXPECT_EQ(with(R"("target_modules":["a",3])"), "target_modules: expected strings, got 3");
  EXPECT_EQ(with(R"("rank_pattern":{"q":1.5})"), "rank_pattern.q: expected an integer from 1 to 65536, got 1.5");
  EXPECT_EQ(with(R"("alpha_pattern":{"q":-1})"), "alpha_pattern.q: expected a number above 0, got -1");
  EXPECT_EQ(config_refusal("[]"), "expected a JSON object, got []");
  const TemporaryDirectory empty;
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { read_adapter_config(empty.path().string()); }),
              HasSubstr("adapter_config.json: no such file (an adapter directory holds"));
}

TEST(ReadAdapterConfig, RefusesOrRoundTripsAThousandMutations) {
  const std::string original = read_file(golden("formats/peft_adapter/adapter_config.json"), 1 << 16);
  const TemporaryDirectory directory;
  int accepted = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    directory.write("adapter_config.json", mutated(mutated(original, make_key(i, 1)), make_key(i, 2)));
    try {
      const std::string text = adapter_config_text(read_adapter_config(directory.path().string()));
      ++accepted;
      ASSERT_EQ(adapter_config_text(read_config_text(text)), text);
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::Data) << error.what();
    }
  }
  EXPECT_GT(accepted, 30);
  EXPECT_LT(accepted, 500);
}

TEST(AdapterConfigText, ReadsBackAsItWasAndSortsItsKeys) {
  AdapterConfig config;
  config.base_model_name_or_path = "models/\"base\"";
  config.task_type = "SEQ_CLS";
  config.r = 4;
  config.lora_alpha = 16;
  config.lora_dropout = 0.1;
  config.use_rslora = true;
  config.target_modules = Names{"query", "value"};
  config.exclude_modules = std::string(R"(.*layer\.0.*)");
  config.modules_to_save = {"classifier"};
  config.rank_pattern = {{"value", 2}, {"query", 3}};
  config.alpha_pattern = {{"value", 0.5}};
  const std::string text = adapter_config_text(config);
  const AdapterConfig again = read_config_text(text);
  EXPECT_EQ(adapter_config_text(again), text);
  EXPECT_EQ(again.rank_pattern, config.rank_pattern);
  EXPECT_EQ(again.exclude_modules, config.exclude_modules);
  EXPECT_EQ(again.base_model_name_or_path, config.base_model_name_or_path);
  const Json json = parse_json(text, "f");
  Names keys;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  EXPECT_TRUE(std::is_sorted(keys.begin(), keys.end()));
  EXPECT_EQ(json["inference_mode"], true);
  EXPECT_EQ(json["peft_type"], "LORA");
}

TEST(AdapterConfigText, CarriesTargetParametersWhichHaveNoDropout) {
  AdapterConfig config;
  config.target_parameters = {"experts.gate_up_proj", "experts.down_proj"};
  const std::string text = adapter_config_text(config);
  EXPECT_TRUE(parse_json(text, "f")["target_modules"].is_null());
  EXPECT_EQ(read_config_text(text).target_parameters, config.target_parameters);
  EXPECT_EQ(config_refusal(R"({"peft_type": "LORA", "target_parameters": ["a.b"], "lora_dropout": 0.1})"),
            "lora_dropout: has no meaning for target_parameters (PEFT has none there either)");
  EXPECT_EQ(config_refusal(R"({"peft_type": "LORA", "target_parameters": "a.b"})"),
            "target_parameters: expected an array of strings, got \"a.b\"");
}

TEST(AdapterConfigText, WritesThePeftKeysWithPeftsTypes) {
  const Json defaults = read_json_file(golden("formats/peft_defaults.json"));
  const Json written = parse_json(adapter_config_text(AdapterConfig{}), "f");
  for (const auto& [key, value] : written.items()) {
    ASSERT_TRUE(defaults.contains(key)) << key;
    if (key == "target_modules" || key == "inference_mode") continue;
    EXPECT_EQ(value, defaults[key]) << key;
    EXPECT_EQ(value.type_name(), std::string(defaults[key].type_name())) << key;
  }
}

TEST(AdapterWeightsPath, RefusesPickledAdapters) {
  const TemporaryDirectory directory;
  const std::string path = directory.path().string();
  const auto text = [&] { return error_text(ErrorKind::Data, [&] { adapter_weights_path(path); }); };
  EXPECT_EQ(text(), path + "/adapter_model.safetensors: no such file");
  directory.write("adapter_model.bin", "PK");
  EXPECT_THAT(text(), HasSubstr("adapter_model.bin: holds pickled weights, which can run code when read (save the "
                                "adapter with PEFT's save_pretrained(DIR)"));
  const std::string file = directory.write("adapter_model.safetensors", "");
  EXPECT_EQ(adapter_weights_path(path), file);
}

TEST(Labels, RoundTripInOrder) {
  const TemporaryDirectory directory;
  const std::string path = directory.path().string();
  EXPECT_FALSE(read_labels(path).has_value());
  const Names labels = {"spam", "ham", "quote\" \xC3\xA9"};
  directory.write("labels.json", labels_text(labels));
  EXPECT_EQ(read_labels(path), labels);
}

TEST(Labels, RefusesWhatAreNoLabels) {
  const TemporaryDirectory directory;
  const auto text = [&](const std::string& json) {
    const std::string prefix = directory.write("labels.json", json) + ": ";
    const std::string text = error_text(ErrorKind::Data, [&] { read_labels(directory.path().string()); });
    return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
  };
  EXPECT_EQ(text("{}"), "expected an array of label names, got {}");
  EXPECT_EQ(text("[]"), "expected an array of label names, got []");
  EXPECT_EQ(text("[\"a\", 1]"), "expected label names, got 1");
  EXPECT_EQ(text("[\"a\", \"b\", \"a\"]"), "names the label \"a\" twice");
}

}  // namespace
}  // namespace lathe::formats
