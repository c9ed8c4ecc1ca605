#include "lathe/arch/arch.h"

#include "arch/tiny_bert.h"
#include "expect_error.h"
#include "formats/mutations.h"

namespace lathe::arch {
namespace {

using testing::error_text;
using ::testing::HasSubstr;
using testing::mutated;
using testing::read_config;
using testing::TemporaryDirectory;
using testing::tiny_bert;
using testing::tiny_bert_config;

std::string config_refusal(const Json& changes) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("config.json", tiny_bert_config(changes).dump());
  const std::string text = error_text(ErrorKind::Data, [&] { read_model_config(path); });
  return text.starts_with(path + ": ") ? text.substr(path.size() + 2) : text;
}

TEST(ReadModelConfig, ReadsWhatTransformersSaved) {
  const ModelConfig config = read_config(tiny_bert_config());
  EXPECT_EQ(config.model_type, "bert");
  EXPECT_EQ(config.labels, (std::vector<std::string>{"LABEL_0", "LABEL_1", "LABEL_2"}));
  const auto& bert = std::get<BertArch>(config.arch);
  EXPECT_EQ(bert.vocab_size, 40);
  EXPECT_EQ(bert.hidden_size, 16);
  EXPECT_EQ(bert.num_hidden_layers, 2);
  EXPECT_EQ(bert.num_attention_heads, 2);
  EXPECT_EQ(bert.intermediate_size, 24);
  EXPECT_EQ(bert.max_position_embeddings, 12);
  EXPECT_EQ(bert.type_vocab_size, 2);
  EXPECT_EQ(bert.layer_norm_eps, 1e-12);
  EXPECT_EQ(bert.hidden_dropout, 0.1);
  EXPECT_EQ(bert.attention_dropout, 0.1);
  EXPECT_FALSE(bert.classifier_dropout.has_value());
  EXPECT_EQ(bert.hidden_act, Activation::Gelu);
  EXPECT_EQ(vocab_size(config.arch), 40);
  EXPECT_EQ(max_positions(config.arch), 12);
}

TEST(ReadModelConfig, ReadsTheFieldsThatChangeTheComputation) {
  const auto bert = [](const Json& changes) { return std::get<BertArch>(read_config(tiny_bert_config(changes)).arch); };
  EXPECT_EQ(bert({{"hidden_act", "gelu_new"}}).hidden_act, Activation::GeluTanh);
  EXPECT_EQ(bert({{"hidden_act", "gelu_pytorch_tanh"}}).hidden_act, Activation::GeluTanh);
  EXPECT_EQ(bert({{"classifier_dropout", 0.25}}).classifier_dropout, 0.25);
  EXPECT_EQ(bert({{"layer_norm_eps", 1e-5}}).layer_norm_eps, 1e-5);
  EXPECT_EQ(bert({{"pad_token_id", nullptr}}).pad_token_id, 0);
  EXPECT_EQ(bert({{"position_embedding_type", "absolute"}, {"torch_dtype", "float16"}}).hidden_size, 16);
}

TEST(ReadModelConfig, HasLabelsOnlyForClassifiers) {
  EXPECT_TRUE(read_config(tiny_bert_config({{"architectures", {"BertModel"}}})).labels.empty());
  EXPECT_TRUE(read_config(tiny_bert_config({{"architectures", nullptr}})).labels.empty());
  EXPECT_EQ(config_refusal({{"id2label", {{"0", "a"}, {"2", "b"}}}}),
            "id2label.2: expected the numbers from 0 as keys, and strings");
}

TEST(ReadModelConfig, RefusesOtherComputationsByName) {
  const auto refused = [](const char* key, const Json& value) { return config_refusal(Json{{key, value}}); };
  EXPECT_EQ(refused("model_type", "t5"), "model_type: \"t5\" is not supported yet (supported: bert)");
  EXPECT_EQ(refused("position_embedding_type", "relative_key"),
            "position_embedding_type: \"relative_key\" is not supported (supported: absolute)");
  EXPECT_EQ(refused("hidden_act", "relu"),
            "hidden_act: \"relu\" is not supported (supported: gelu, gelu_new, gelu_pytorch_tanh)");
  EXPECT_EQ(refused("problem_type", "regression"),
            "problem_type: \"regression\" is not supported (supported: single_label_classification)");
  EXPECT_EQ(refused("is_decoder", true), "is_decoder: true is not supported for an encoder");
  EXPECT_EQ(refused("add_cross_attention", true), "add_cross_attention: true is not supported for an encoder");
  EXPECT_EQ(refused("pruned_heads", {{"0", {1}}}), "pruned_heads: {...} is not supported");
}

TEST(ReadModelConfig, RefusesImpossibleSizes) {
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                          "max_position_embeddings", "type_vocab_size"}) {
    const bool positions = key == std::string("max_position_embeddings");  // for a token between [CLS] and [SEP]
    for (const Json& value :
         {Json(0), Json(-1), Json(2.5), Json("16"), Json(uint64_t{1} << 40), Json(UINT64_MAX), Json(true)}) {
      EXPECT_THAT(config_refusal(Json{{key, value}}),
                  HasSubstr(key + std::string(": expected an integer from ") + (positions ? "3 to " : "1 to ")))
          << value;
    }
  }
  EXPECT_THAT(config_refusal({{"max_position_embeddings", 2}}), HasSubstr("expected an integer from 3 to "));
  EXPECT_EQ(config_refusal({{"num_attention_heads", 3}}),
            "hidden_size: expected a multiple of num_attention_heads = 3, got 16");
  EXPECT_EQ(config_refusal({{"layer_norm_eps", 0}}), "layer_norm_eps: expected a number above 0, got 0");
  EXPECT_EQ(config_refusal({{"hidden_dropout_prob", 1}}), "hidden_dropout_prob: expected a number in [0, 1), got 1");
  EXPECT_EQ(config_refusal({{"attention_probs_dropout_prob", -0.5}}),
            "attention_probs_dropout_prob: expected a number in [0, 1), got -0.5");
  EXPECT_EQ(config_refusal({{"pad_token_id", 40}}), "pad_token_id: expected an integer from 0 to 39, got 40");
  Json config = tiny_bert_config();
  config.erase("hidden_size");
  const TemporaryDirectory directory;
  const std::string path = directory.write("config.json", config.dump());
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { read_model_config(path); }),
              HasSubstr("hidden_size: expected an integer from 1 to 16777216, got nothing"));
}

TEST(ReadModelConfig, RefusesOrChecksAThousandMutations) {
  const std::string original = tiny_bert_config().dump(1);
  const TemporaryDirectory directory;
  int accepted = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    const std::string path = directory.write("config.json", mutated(mutated(original, make_key(i, 1)), make_key(i, 2)));
    try {
      const auto bert = std::get<BertArch>(read_model_config(path).arch);
      ++accepted;
      ASSERT_TRUE(bert.hidden_size > 0 && bert.hidden_size % bert.num_attention_heads == 0);
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::Data) << error.what();
    }
  }
  EXPECT_GT(accepted, 30);
  EXPECT_LT(accepted, 700);
}

TEST(OverrideDropout, ReachesEveryDropout) {
  Arch arch = read_config(tiny_bert_config()).arch;
  override_dropout(arch, 0.5);
  const auto& bert = std::get<BertArch>(arch);
  EXPECT_EQ(bert.hidden_dropout, 0.5);
  EXPECT_EQ(bert.attention_dropout, 0.5);
  EXPECT_EQ(bert.classifier_dropout, 0.5);
}

TEST(ClassifierParameters, AreThoseOfTransformersInItsOrder) {
  const Arch arch = read_config(tiny_bert_config()).arch;
  Json parameters = Json::array();
  for (const ParameterSpec& spec : classifier_parameters(arch, 3)) parameters.push_back({spec.name, spec.shape});
  EXPECT_EQ(parameters, tiny_bert().at("parameters"));
}

TEST(ClassifierLinears, AreThoseOfTransformersInItsOrder) {
  const Arch arch = read_config(tiny_bert_config()).arch;
  Json linears = Json::array();
  for (const LinearSpec& spec : classifier_linears(arch, 3)) {
    linears.push_back({spec.path, spec.in_features, spec.out_features});
  }
  EXPECT_EQ(linears, tiny_bert().at("linears"));
}

}  // namespace
}  // namespace lathe::arch
