#include "lathe/arch/targets.h"

#include "arch/tiny_bert.h"
#include "expect_error.h"

namespace lathe::arch {
namespace {

using formats::AdapterConfig;
using formats::TargetModules;
using testing::error_text;
using testing::golden;
using ::testing::HasSubstr;
using testing::read_config;
using testing::tiny_bert_config;

using Names = std::vector<std::string>;

TargetsOrigin of_recipe() {
  return {ErrorKind::Config, [](const std::string& key) {
            return Diagnostic{"r.yaml", key == "target_modules" ? 3 : 4, 5, "adapter." + key, "", ""};
          }};
}

std::vector<Target> match_tiny_bert(const AdapterConfig& config, const TargetsOrigin& origin) {
  const Arch arch = read_config(tiny_bert_config()).arch;
  return match_targets(classifier_linears(arch, 3), config, arch, origin);
}

AdapterConfig with_targets(const TargetModules& targets) {
  AdapterConfig config;
  config.target_modules = targets;
  return config;
}

std::string target_refusal(const AdapterConfig& config) {
  return error_text(ErrorKind::Config, [&] { match_tiny_bert(config, of_recipe()); });
}

std::string target_refusal_of_file(const AdapterConfig& config) {
  return error_text(ErrorKind::Data, [&] { match_tiny_bert(config, origin_of_adapter("lora")); });
}

std::optional<TargetModules> read_rule(const Json& rule, const char* key) {
  if (!rule.contains(key)) return std::nullopt;
  if (rule[key].is_string()) return rule[key].get<std::string>();
  return rule[key].get<Names>();
}

std::vector<formats::Pattern> read_patterns(const Json& rule, const char* key) {
  std::vector<formats::Pattern> patterns;
  if (!rule.contains(key)) return patterns;
  for (const auto& [pattern, value] : rule[key].items()) patterns.emplace_back(pattern, value.get<double>());
  return patterns;
}

TEST(MatchTargets, MatchesWhatPeftMatches) {
  const Json rules = read_json_file(golden("formats/targets.json"));
  EXPECT_GE(rules.size(), 20U);
  for (const Json& rule : rules) {
    AdapterConfig config;
    config.task_type = "SEQ_CLS";
    config.r = 8;
    config.lora_alpha = 16;
    config.target_modules = read_rule(rule, "target_modules");
    config.exclude_modules = read_rule(rule, "exclude_modules");
    if (rule.contains("modules_to_save")) config.modules_to_save = rule["modules_to_save"].get<Names>();
    config.rank_pattern = read_patterns(rule, "rank_pattern");
    config.alpha_pattern = read_patterns(rule, "alpha_pattern");
    Json matched = Json::array();
    for (const Target& target : match_tiny_bert(config, origin_of_adapter("lora"))) {
      matched.push_back({target.linear.path, target.rank, static_cast<int64_t>(target.alpha)});
    }
    EXPECT_EQ(matched, rule["matched"]) << rule["name"];
  }
}

TEST(MatchTargets, RefusesTargetsThatMatchNothing) {
  const std::string known = "known: query, key, value, dense, classifier)";
  EXPECT_EQ(target_refusal_of_file(with_targets(Names{"q_proj"})),
            "lora/adapter_config.json: target_modules: the list matches no linear layer of the model (" + known);
  EXPECT_EQ(target_refusal(with_targets(std::string("quer"))),
            "r.yaml:3:5: adapter.target_modules: \"quer\" matches no linear layer of the model (did you mean query? " +
                known);
  EXPECT_THAT(target_refusal(with_targets(Names{})), HasSubstr("the list matches no linear layer"));
  AdapterConfig config = with_targets(Names{"query"});
  config.exclude_modules = Names{"query"};
  EXPECT_THAT(target_refusal(config), HasSubstr("the list matches no linear layer"));
}

TEST(MatchTargets, NamesTheItemThatMatchesNothing) {
  const AdapterConfig config = with_targets(Names{"query", "valeu"});
  EXPECT_EQ(match_tiny_bert(config, origin_of_adapter("lora")).size(), 2U);
  EXPECT_EQ(target_refusal(config),
            "r.yaml:3:5: adapter.target_modules: \"valeu\" matches no linear layer of the model (did you mean value? "
            "known: query, key, value, dense, classifier)");
}

// Two layers of four experts and one shared.
Arch with_experts() {
  return read_config(tiny_bert_config({{"moe", {{"num_experts", 4}, {"top_k", 2}, {"shared_experts", 1}}}})).arch;
}

Names paths_of(const std::vector<Target>& targets) {
  Names paths;
  for (const Target& target : targets) paths.push_back(target.linear.path);
  return paths;
}

TEST(ClassifierTargets, AreExpertsOneByOne) {
  AdapterConfig config = with_targets(Names{"experts.3.up_proj", "shared_experts.down_proj"});
  config.r = 2;
  config.rank_pattern = {{R"(layer\.1\..*\.3\.up_proj)", 5}};
  const auto targets = classifier_targets(with_experts(), 3, config, of_recipe());
  EXPECT_EQ(
      paths_of(targets),
      (Names{"bert.encoder.layer.0.moe.shared_experts.down_proj", "bert.encoder.layer.1.moe.shared_experts.down_proj",
             "bert.encoder.layer.0.moe.experts.3.up_proj", "bert.encoder.layer.1.moe.experts.3.up_proj"}));
  EXPECT_EQ(targets[2].rank, 2);
  EXPECT_EQ(targets[3].rank, 5);
  config.modules_to_save = {"moe"};
  EXPECT_EQ(
      error_text(ErrorKind::Config, [&] { classifier_targets(with_experts(), 3, config, of_recipe()); }),
      "r.yaml:3:5: adapter.target_modules: the list matches no linear layer of the model (known: query, key, value, "
      "dense, up_proj, down_proj, classifier)");
}

TEST(ClassifierTargets, AreTensorsOfAllExperts) {
  AdapterConfig config;
  config.target_parameters = {"experts.down_proj"};
  config.r = 2;
  config.rank_pattern = {{"down_proj", 3}};
  const auto targets = classifier_targets(with_experts(), 3, config, origin_of_adapter("lora"));
  ASSERT_EQ(paths_of(targets),
            (Names{"bert.encoder.layer.0.moe.experts.down_proj", "bert.encoder.layer.1.moe.experts.down_proj"}));
  EXPECT_EQ(targets[0].linear.num_experts, 4);
  EXPECT_EQ(targets[0].rank, 3);
  // Their experts are no linear layers then, as in transformers' fused modules.
  config.target_modules = Names{"query", "down_proj"};
  for (const std::string& path : paths_of(classifier_targets(with_experts(), 3, config, origin_of_adapter("lora"))))
    EXPECT_THAT(path, ::testing::Not(::testing::MatchesRegex(".*\\.experts\\.[0-9].*")));
  config.target_parameters = {"experts.gate_up_proj"};
  EXPECT_EQ(
      error_text(ErrorKind::Data, [&] { classifier_targets(with_experts(), 3, config, origin_of_adapter("lora")); }),
      "lora/adapter_config.json: target_parameters: \"experts.gate_up_proj\" matches no tensor of experts in the model "
      "(known: up_proj, down_proj)");
}

TEST(MatchTargets, NamesEveryWrongItemOfBothLists) {
  AdapterConfig config = with_targets(Names{"qurey", "value", "kye"});
  EXPECT_THAT(target_refusal(config),
              ::testing::MatchesRegex("[^\n]*\"qurey\" matches no [^\n]*\n[^\n]*\"kye\" matches no [^\n]*"));
  config = with_targets(Names{"query", "value"});
  config.exclude_modules = Names{"vlaue"};
  EXPECT_EQ(match_tiny_bert(config, origin_of_adapter("lora")).size(), 4U);
  EXPECT_THAT(target_refusal(config),
              HasSubstr("r.yaml:4:5: adapter.exclude_modules: \"vlaue\" matches no linear layer of "
                        "the model (did you mean value?"));
}

TEST(MatchTargets, NamesThePatternThatDecidesForNothing) {
  AdapterConfig config = with_targets(Names{"query"});
  config.rank_pattern = {{"key", 4}};
  EXPECT_EQ(match_tiny_bert(config, origin_of_adapter("lora")).size(), 2U);
  EXPECT_EQ(target_refusal(config),
            "r.yaml:4:5: adapter.rank_pattern: \"key\" decides for no adapted layer (it matches the end of a path, and "
            "the first that matches decides)");
  config.rank_pattern.clear();
  config.alpha_pattern = {{"query", 4}, {"layer.0.*query", 2}};
  EXPECT_THAT(target_refusal(config), HasSubstr("alpha_pattern: \"layer.0.*query\" decides for no adapted layer"));
}

TEST(MatchTargets, NamesTheMistakeInARegex) {
  EXPECT_EQ(target_refusal(with_targets(std::string("(query"))),
            "r.yaml:3:5: adapter.target_modules: expected a regular expression: missing closing "
            "parenthesis at character 7, got \"(query\"");
  AdapterConfig config = with_targets(Names{"query"});
  config.alpha_pattern = {{"a)(", 1}, {"[", 1}};
  EXPECT_THAT(target_refusal(config), HasSubstr("r.yaml:4:5: adapter.alpha_pattern: expected a regular expression: "));
  EXPECT_THAT(target_refusal_of_file(config), HasSubstr("alpha_pattern: expected a regular expression: "));
  config.alpha_pattern.clear();
  config.exclude_modules = std::string("\xFF");
  EXPECT_THAT(target_refusal(config), HasSubstr("exclude_modules: expected a regular expression: UTF-8 error"));
  EXPECT_THAT(target_refusal(with_targets(std::string(10001, 'a'))),
              HasSubstr("expected a regular expression of at most 10000 bytes"));
}

TEST(MatchTargets, StopsRegexesThatWouldRunForever) {
  for (const char* regex : {"(.+)+[!?]", "(([a-z0-9]|[._])+)+[!?]", "(.*)*(?:(?=(.*))\\2.)*[!?]", "(?:.|(?R))*[!?]"}) {
    EXPECT_THAT(target_refusal(with_targets(std::string(regex))),
                HasSubstr("target_modules: expected a regular expression that matches in bounded time: "));
  }
}

TEST(MatchesModuleName, MatchesWholeComponentsOnly) {
  EXPECT_TRUE(matches_module_name("a.b.query", "query"));
  EXPECT_TRUE(matches_module_name("query", "query"));
  EXPECT_TRUE(matches_module_name("a.b.query", "b.query"));
  EXPECT_FALSE(matches_module_name("a.b.subquery", "query"));
  EXPECT_FALSE(matches_module_name("a.query.b", "query"));
}

}  // namespace
}  // namespace lathe::arch
