#include "lathe/models/mixer.h"

#include "lathe/adapters/lora.h"
#include "lathe/arch/targets.h"
#include "lathe/base/files.h"
#include "lathe/io/tensors.h"
#include "lathe/models/load.h"
#include "lathe/models/quantize.h"
#include "temporary_directory.h"
#include "tensor_expect.h"

namespace lathe::models {
namespace {

using testing::expect_close;
using testing::expect_identical;
using testing::ramp;
using testing::TemporaryDirectory;

arch::MixerArch small_mixer() {
  arch::MixerArch arch;
  arch.image_height = 12;
  arch.image_width = 8;
  arch.patch_size = 4;
  arch.num_channels = 2;
  arch.num_blocks = 3;
  arch.hidden_size = 10;
  arch.tokens_hidden_size = 7;
  arch.channels_hidden_size = 24;
  return arch;
}

std::shared_ptr<ImageClassifier> drawn(const arch::MixerArch& arch, int64_t num_labels, uint64_t seed) {
  auto model = build_image_classifier(arch, num_labels);
  load_weights(*model, arch::match_nothing(arch, num_labels), seed);
  return model;
}

TEST(Mixer, HasTheNamesAndLinearsOfTheArchitecturesList) {
  const arch::Arch arch = small_mixer();
  const auto model = build_image_classifier(arch, 5);
  const auto expected = arch::classifier_parameters(arch, 5);
  const auto parameters = model->named_parameters();
  ASSERT_EQ(parameters.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(parameters[i].key(), expected[i].name);
    EXPECT_EQ(parameters[i].value().sizes(), at::IntArrayRef(expected[i].shape)) << expected[i].name;
  }
  std::vector<std::string> slots, linears;
  for (const nn::NamedSlot& named : nn::named_slots(*model)) slots.push_back(named.path);
  for (const arch::LinearSpec& linear : arch::classifier_linears(arch, 5)) linears.push_back(linear.path);
  std::sort(slots.begin(), slots.end());
  std::sort(linears.begin(), linears.end());
  EXPECT_EQ(slots, linears);
}

TEST(Mixer, StemIsTheConvolution) {
  PatchProjection stem(small_mixer());
  stem.weight.set_data(ramp(stem.weight.sizes(), 0.3));
  stem.bias.set_data(ramp(stem.bias.sizes(), 0.5));
  const Tensor pixels = ramp({2, 2, 12, 8}, 0.21);
  const Tensor expected = at::conv2d(pixels, stem.weight, stem.bias, 4).flatten(2).transpose(1, 2);
  expect_close(stem.forward(pixels), expected, 1e-5, 1e-5);
}

TEST(Mixer, DrawsWeightsFromTheSeedAsTimmDoes) {
  const auto model = drawn(small_mixer(), 5, 3), same = drawn(small_mixer(), 5, 3), other = drawn(small_mixer(), 5, 4);
  for (const auto& item : model->named_parameters()) {
    const Tensor& value = item.value();
    expect_identical(same->named_parameters()[item.key()], value);
    if (value.dim() < 2 || item.key() == "head.weight") continue;
    EXPECT_FALSE(at::equal(other->named_parameters()[item.key()], value)) << item.key();
    const double fan_in = static_cast<double>(value.numel()) / static_cast<double>(value.size(0));
    const bool stem = item.key() == "stem.proj.weight";
    const double bound = stem ? 2 / 0.87962566103423978 * std::sqrt(1 / fan_in)
                              : std::sqrt(6 / (fan_in + static_cast<double>(value.size(0))));
    EXPECT_LE(value.abs().max().item<double>(), bound) << item.key();
    EXPECT_GT(value.abs().max().item<double>(), 0.8 * bound) << item.key();
  }
  EXPECT_EQ(model->named_parameters()["head.weight"].abs().max().item<double>(), 0);
  EXPECT_EQ(model->named_parameters()["norm.weight"].min().item<double>(), 1);
}

TEST(Mixer, LoadsTheSameTensorsThatWereWritten) {
  const TemporaryDirectory directory;
  const arch::Arch arch = small_mixer();
  const auto model = drawn(small_mixer(), 5, 3);
  io::NamedTensors tensors;
  for (const auto& item : model->named_parameters()) tensors.emplace_back(item.key(), item.value());
  io::write_safetensors((directory / "model.safetensors").string(), tensors);
  arch::ImageInput input;
  input.mean = input.std = {0.5, 0.5};
  directory.write("config.json", arch::timm_config(small_mixer(), input, {"a", "b", "c", "d", "e"}).dump());
  const auto files = formats::ModelDirectory::open(directory.path().string());
  const auto config = arch::read_model_config(files.config_path());
  EXPECT_EQ(config.labels.size(), 5U);
  const auto loaded = build_image_classifier(config.arch, 5);
  load_weights(*loaded, arch::match_checkpoint(files, config.arch, 5), 9);
  for (const auto& item : model->named_parameters())
    expect_identical(loaded->named_parameters()[item.key()], item.value());
  const auto other = build_image_classifier(config.arch, 2);
  load_weights(*other, arch::match_checkpoint(files, config.arch, 2), 9);
  EXPECT_EQ(other->forward(ramp({1, 2, 12, 8}), {}).sizes(), (std::vector<int64_t>{1, 2}));
}

TEST(Mixer, RefusesOtherPixels) {
  const auto model = drawn(small_mixer(), 5, 3);
  const auto message = [&](at::IntArrayRef shape) -> std::string {
    try {
      model->forward(ramp(shape), {});
    } catch (const c10::ValueError& error) {
      return error.what_without_backtrace();
    }
    return "nothing";
  };
  EXPECT_EQ(message({1, 3, 12, 8}), "Mixer: expected pixels [N, 2, 12, 8], got [1, 3, 12, 8]");
  EXPECT_EQ(message({1, 2, 8, 12}), "Mixer: expected pixels [N, 2, 12, 8], got [1, 2, 8, 12]");
}

TEST(Mixer, TakesLoRAInAnyOfItsLinears) {
  const arch::Arch arch = small_mixer();
  const auto model = drawn(small_mixer(), 5, 3);
  const Tensor pixels = ramp({3, 2, 12, 8}, 0.21);
  for (auto& item : model->named_parameters()) {
    if (item.key() == "head.weight") item.value().set_data(ramp(item.value().sizes(), 0.4));
  }
  const Tensor before = model->forward(pixels, {});
  formats::AdapterConfig config;
  config.r = 2;
  config.target_modules = std::vector<std::string>{"fc1", "fc2", "head"};
  adapters::attach(
      *model, arch::match_targets(arch::classifier_linears(arch, 5), config, arch, arch::origin_of_adapter("lora")),
      config);
  EXPECT_EQ(adapters::lora_layers(*model).size(), 13U);
  expect_close(model->forward(pixels, {}), before, 1e-5, 1e-5);
  for (const auto& [path, layer] : adapters::lora_layers(*model))
    layer->lora_B->weight.set_data(ramp(layer->lora_B->weight.sizes(), 0.5) * 0.1);
  const Tensor adapted = model->forward(pixels, {});
  EXPECT_GT((adapted - before).abs().max().item<double>(), 1e-3);
  adapters::merge(*model);
  expect_close(model->forward(pixels, {}), adapted, 1e-4, 1e-5);
}

TEST(Mixer, QuantisesDrawnWeights) {
  const arch::Arch arch = small_mixer();
  const auto dense = drawn(small_mixer(), 5, 3), packed = build_image_classifier(arch, 5);
  quantize_slots(*packed, nn::NF4LinearOptions(), {"head"});
  load_weights(*packed, arch::match_nothing(arch, 5), 3);
  const auto slots = nn::named_slots(*packed), originals = nn::named_slots(*dense);
  for (size_t i = 0; i < slots.size(); ++i) {
    const Tensor exact = (*originals[i].slot)->dense_weight(), four_bits = (*slots[i].slot)->dense_weight();
    // Half of NF4's widest step, 0.152 of the block's largest weight.
    expect_close(four_bits, exact, 0, 0.16 * exact.abs().max().item<double>());
  }
  EXPECT_TRUE(packed->forward(ramp({1, 2, 12, 8}), {}).isfinite().all().item<bool>());
}

}  // namespace
}  // namespace lathe::models
