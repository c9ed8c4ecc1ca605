#include "lathe/arch/mixer.h"

#include "arch/tiny_bert.h"
#include "expect_error.h"
#include "formats/safetensors_bytes.h"
#include "lathe/arch/checkpoint.h"

namespace lathe::arch {
namespace {

using testing::error_text;
using ::testing::HasSubstr;
using testing::read_config;
using testing::TemporaryDirectory;

MixerArch mixer_of(const Json& config) { return std::get<MixerArch>(read_config(config).arch); }

std::string refusal(const Json& config) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("config.json", config.dump());
  const std::string text = error_text(ErrorKind::Data, [&] { read_model_config(path); });
  return text.starts_with(path + ": ") ? text.substr(path.size() + 2) : text;
}

std::string mapping_refusal(const Json& mapping) {
  return error_text(ErrorKind::Data, [&] { read_arch_mapping(JsonObject(mapping, "", "model.arch")); });
}

int64_t num_parameters(const MixerArch& arch, int64_t num_labels) {
  int64_t sum = 0;
  for (const ParameterSpec& parameter : classifier_parameters(arch, num_labels)) {
    int64_t product = 1;
    for (const int64_t size : parameter.shape) product *= size;
    sum += product;
  }
  return sum;
}

// vit_jax/models_test.py has B/16, B/32 and L/16; timm 1.0.31 counts S/32, S/16 and L/32; H/14 is added up from its
// layers: 32 · (2·256·640 + 640 + 256 + 2·1280·5120 + 5120 + 1280 + 4·1280) + 14²·3·1280 + 1280 + 2·1280 + 1281·1000.
TEST(MixerArch, CountsTheParametersOfTheReleasedSizes) {
  const std::vector<std::pair<const char*, int64_t>> published = {
      {"mixer_b16_224", 59880472}, {"mixer_b32_224", 60293428}, {"mixer_l16_224", 208196168}};
  for (const auto& [name, count] : published)
    EXPECT_EQ(num_parameters(mixer_of({{"architecture", name}}), 1000), count) << name;
  const int64_t block = 2 * 256 * 640 + 640 + 256 + 2 * 1280 * 5120 + 5120 + 1280 + 4 * 1280;
  EXPECT_EQ(num_parameters(mixer_of({{"architecture", "mixer_h14_224"}}), 1000),
            32 * block + 14 * 14 * 3 * 1280 + 1280 + 2 * 1280 + 1281 * 1000);
  EXPECT_EQ(num_parameters(mixer_of({{"architecture", "mixer_s32_224"}}), 1000), 19104624);
  EXPECT_EQ(num_parameters(mixer_of({{"architecture", "mixer_s16_224"}}), 1000), 18528264);
  EXPECT_EQ(num_parameters(mixer_of({{"architecture", "mixer_l32_224"}}), 1000), 206939264);
}

TEST(MixerArch, HasTheExamsLayer) {
  MixerArch arch;
  arch.image_height = 8;
  arch.image_width = 16;
  arch.patch_size = 1;
  arch.hidden_size = 1024;
  arch.tokens_hidden_size = 512;
  arch.channels_hidden_size = 4096;
  arch.num_blocks = 1;
  const int64_t one = num_parameters(arch, 2);
  arch.num_blocks = 24;
  EXPECT_EQ(num_parameters(arch, 2) - one, 23 * 8529536);
}

TEST(MixerArch, ReadsTimmsArguments) {
  const Json config = {{"architecture", "mixer_s16_224.some_tag"},
                       {"model_args",
                        {{"img_size", {12, 8}},
                         {"in_chans", 1},
                         {"patch_size", 4},
                         {"num_blocks", 2},
                         {"embed_dim", 10},
                         {"mlp_ratio", {0.7, 3}}}},
                       {"pretrained_cfg", {{"mean", {0.1}}, {"std", {0.2}}, {"label_names", {"cat", "dog"}}}}};
  const ModelConfig read = read_config(config);
  const auto& arch = std::get<MixerArch>(read.arch);
  EXPECT_EQ(arch.num_patches(), 6);
  EXPECT_EQ(arch.num_channels, 1);
  EXPECT_EQ(arch.tokens_hidden_size, 7);
  EXPECT_EQ(arch.channels_hidden_size, 30);
  EXPECT_EQ(read.labels, (std::vector<std::string>{"cat", "dog"}));
  EXPECT_EQ(read.image->mean, std::vector<double>{0.1});
  EXPECT_EQ(read.image->interpolation, "bicubic");
}

TEST(MixerArch, WritesWhatItReadsAgain) {
  for (int64_t hidden = 1; hidden < 200; hidden += 3) {
    MixerArch arch;
    arch.image_height = 12;
    arch.image_width = 8;
    arch.patch_size = 4;
    arch.num_channels = 2;
    arch.num_blocks = 3;
    arch.hidden_size = hidden;
    arch.tokens_hidden_size = 3 * hidden / 7 + 1;
    arch.channels_hidden_size = 49;
    arch.hidden_act = Activation::GeluTanh;
    arch.layer_norm_eps = 1e-5;
    ImageInput input;
    input.mean = {0.25, 0.5};
    input.std = {1, 2};
    const Json written = timm_config(arch, input, {"a", "b"});
    const ModelConfig again = read_config(written);
    EXPECT_EQ(timm_config(std::get<MixerArch>(again.arch), *again.image, again.labels), written);
    EXPECT_EQ(std::get<MixerArch>(again.arch).tokens_hidden_size, arch.tokens_hidden_size);
  }
}

TEST(MixerArch, RefusesByName) {
  const auto with = [](const Json& args) { return Json{{"architecture", "mixer_s16_224"}, {"model_args", args}}; };
  EXPECT_THAT(refusal({{"architecture", "resmlp_12_224"}}),
              HasSubstr("architecture: \"resmlp_12_224\" is not supported yet (supported: mixer_s32_224"));
  EXPECT_EQ(refusal(with({{"img_size", 225}})),
            "model_args.img_size: expected a multiple of the patch size 16, got 225");
  EXPECT_EQ(refusal(with({{"drop_rate", 0.1}})), "model_args.drop_rate: 0.1 is not supported (supported: 0)");
  EXPECT_THAT(refusal(with({{"patch_sise", 8}})), HasSubstr("model_args.patch_sise: unknown key (did you mean"));
  EXPECT_THAT(refusal(with({{"num_blocks", 0}})), HasSubstr("model_args.num_blocks: expected an integer from 1"));
  EXPECT_THAT(
      mapping_refusal(
          {{"model_type", "mixer"}, {"image_size", 28}, {"patch_size", 5}, {"num_blocks", 1}, {"hidden_size", 8}}),
      HasSubstr("model.arch.image_size: expected a multiple of the patch size 5, got 28"));
  EXPECT_THAT(mapping_refusal({{"model_type", "mixer"}, {"image_size", 28}}),
              HasSubstr("model.arch.patch_size: expected an integer from 1"));
  EXPECT_THAT(mapping_refusal({{"model_type", "bert"}, {"hiden_size", 8}}),
              HasSubstr("model.arch.hiden_size: unknown key (did you mean hidden_size"));
}

TEST(MixerArch, TakesANameAndChangesIt) {
  const Json mapping = {
      {"model_type", "mixer"}, {"architecture", "mixer_s32"}, {"image_size", 64}, {"num_channels", 1}};
  const auto arch = std::get<MixerArch>(read_arch_mapping(JsonObject(mapping, "", "model.arch")).arch);
  EXPECT_EQ(arch.num_patches(), 4);
  EXPECT_EQ(arch.hidden_size, 512);
  EXPECT_EQ(arch.tokens_hidden_size, 256);
  EXPECT_EQ(arch.num_channels, 1);
}

TEST(MixerCheckpoint, ReplacesAHeadOfOtherLabelsOnly) {
  MixerArch arch;
  arch.image_height = arch.image_width = 8;
  arch.patch_size = 4;
  arch.num_blocks = 1;
  arch.hidden_size = 6;
  arch.tokens_hidden_size = 3;
  arch.channels_hidden_size = 24;
  std::vector<std::pair<std::string, std::vector<int64_t>>> shapes;
  for (const ParameterSpec& spec : classifier_parameters(arch, 5)) shapes.emplace_back(spec.name, spec.shape);
  const TemporaryDirectory directory;
  directory.write("config.json", "{}");
  const auto open = [&] {
    directory.write("model.safetensors", testing::safetensors_bytes(shapes, formats::Dtype::F32));
    return formats::ModelDirectory::open(directory.path().string());
  };
  const auto model = open();
  EXPECT_TRUE(match_checkpoint(model, arch, 5).has_head);
  const CheckpointMatch other = match_checkpoint(model, arch, 3);
  EXPECT_FALSE(other.has_head);
  for (const auto& item : other.items)
    EXPECT_EQ(item.tensor == nullptr, item.parameter.name.starts_with("head.")) << item.parameter.name;
  shapes[4].second[0] += 1;
  const auto wrong = open();
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { match_checkpoint(wrong, arch, 5); }),
              HasSubstr("blocks.0.mlp_tokens.fc1.weight: expected shape [3, 4], got [4, 4]"));
}

}  // namespace
}  // namespace lathe::arch
