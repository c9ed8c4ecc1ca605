#include "lathe/arch/mixer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <set>

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::arch {
namespace {

struct Released {
  const char* name;  // in timm: with "_224", the side of the image
  int64_t patch_size, num_blocks, hidden_size;
};

// Table 1 of the paper. D_C = 4 C, D_S = C / 2.
constexpr std::array<Released, 7> kReleased = {{{"mixer_s32", 32, 8, 512},
                                                {"mixer_s16", 16, 8, 512},
                                                {"mixer_b32", 32, 12, 768},
                                                {"mixer_b16", 16, 12, 768},
                                                {"mixer_l32", 32, 24, 1024},
                                                {"mixer_l16", 16, 24, 1024},
                                                {"mixer_h14", 14, 32, 1280}}};
constexpr const char* kSideSuffix = "_224";

std::string supported_names() {
  std::string text = "supported: ";
  for (const Released& released : kReleased)
    text += (released.name == kReleased[0].name ? "" : ", ") + std::string(released.name) + kSideSuffix;
  return text;
}

// "mixer_b16_224.goog_in21k" names the size mixer_b16 and the weights' origin.
MixerArch released_size(const JsonObject& config) {
  const std::string name = config.string("architecture");
  std::string size = name.substr(0, name.find('.'));
  if (size.ends_with(kSideSuffix)) size.resize(size.size() - std::string(kSideSuffix).size());
  const auto found = std::find_if(kReleased.begin(), kReleased.end(), [&](const auto& r) { return r.name == size; });
  if (found == kReleased.end())
    throw config.error("architecture", quote(name) + " is not supported yet", supported_names());
  MixerArch arch;
  arch.patch_size = found->patch_size;
  arch.num_blocks = found->num_blocks;
  arch.hidden_size = found->hidden_size;
  arch.tokens_hidden_size = arch.hidden_size / 2;
  arch.channels_hidden_size = arch.hidden_size * 4;
  return arch;
}

// One side of a square, or [height, width].
void read_image_size(const JsonObject& config, const std::string& key, MixerArch& arch) {
  const Json* value = config.find(key);
  if (value == nullptr) return;
  if (!value->is_array()) {
    arch.image_height = arch.image_width = config.integer(key, 1, kMaxSize);
    return;
  }
  if (value->size() != 2)
    throw config.error(key, Diagnostic::expected("an integer or [height, width]", describe(*value)));
  arch.image_height = config.integer_of(key, (*value)[0], 1, kMaxSize);
  arch.image_width = config.integer_of(key, (*value)[1], 1, kMaxSize);
}

// What timm takes from the checkpoint's preprocessing where model_args say nothing.
void read_input_size(const JsonObject& config, MixerArch& arch) {
  if (config.find("pretrained_cfg") == nullptr) return;
  const JsonObject cfg = config.object("pretrained_cfg");
  const Json* size = cfg.find("input_size");
  if (size == nullptr) return;
  if (!size->is_array() || size->size() != 3)
    throw cfg.error("input_size", Diagnostic::expected("[channels, height, width]", describe(*size)));
  arch.num_channels = cfg.integer_of("input_size", (*size)[0], 1, kMaxSize);
  if (!cfg.boolean("fixed_input_size", false)) return;
  arch.image_height = cfg.integer_of("input_size", (*size)[1], 1, kMaxSize);
  arch.image_width = cfg.integer_of("input_size", (*size)[2], 1, kMaxSize);
}

void check_image_size(const JsonObject& config, const std::string& key, const MixerArch& arch) {
  for (const int64_t side : {arch.image_height, arch.image_width}) {
    if (side % arch.patch_size != 0) {
      throw config.error(key, Diagnostic::expected("a multiple of the patch size " + std::to_string(arch.patch_size),
                                                   std::to_string(side)));
    }
  }
  if (arch.num_patches() > kMaxSize) throw config.error(key, "has more than " + std::to_string(kMaxSize) + " patches");
}

// What timm's files cannot say: keys of Lathe's own, which timm ignores.
void read_own_keys(const JsonObject& config, MixerArch& arch) {
  arch.layer_norm_eps = config.number("layer_norm_eps", arch.layer_norm_eps);
  if (arch.layer_norm_eps <= 0)
    throw config.error("layer_norm_eps",
                       Diagnostic::expected("a number above 0", describe(*config.find("layer_norm_eps"))));
  const std::string act = config.string("hidden_act", "gelu");
  if (act != "gelu" && act != "gelu_tanh")
    throw config.error("hidden_act", quote(act) + " is not supported", "supported: gelu, gelu_tanh");
  arch.hidden_act = act == "gelu" ? Activation::Gelu : Activation::GeluTanh;
  if (config.find("moe") != nullptr) arch.experts = read_mlp_experts(config.object("moe"));
}

// Hidden widths are int(ratio · hidden_size) in timm.
void read_mlp_ratio(const JsonObject& args, MixerArch& arch) {
  const Json* value = args.find("mlp_ratio");
  const auto width = [&](double ratio) {
    const double product = ratio * static_cast<double>(arch.hidden_size);
    if (!(product >= 1 && product <= static_cast<double>(kMaxSize)))
      throw args.error("mlp_ratio", "gives a hidden width outside 1 to " + std::to_string(kMaxSize));
    return static_cast<int64_t>(product);
  };
  std::array<double, 2> ratios = {0.5, 4};
  if (value != nullptr) {
    const bool pair = value->is_array() && value->size() == 2 && (*value)[0].is_number() && (*value)[1].is_number();
    if (!pair && !value->is_number())
      throw args.error("mlp_ratio", Diagnostic::expected("a number or two numbers", describe(*value)));
    ratios = pair ? std::array<double, 2>{(*value)[0].get<double>(), (*value)[1].get<double>()}
                  : std::array<double, 2>{value->get<double>(), value->get<double>()};
  }
  arch.tokens_hidden_size = width(ratios[0]);
  arch.channels_hidden_size = width(ratios[1]);
}

void refuse_other_mixers(const JsonObject& args) {
  for (const char* key : {"drop_rate", "proj_drop_rate", "drop_path_rate"}) {
    if (args.number(key, 0) != 0)
      throw args.error(key, describe(*args.find(key)) + " is not supported", "supported: 0");
  }
  if (args.boolean("stem_norm", false)) throw args.error("stem_norm", "true is not supported");
  if (const std::string pool = args.string("global_pool", "avg"); pool != "avg")
    throw args.error("global_pool", quote(pool) + " is not supported", "supported: avg");
}

std::vector<double> read_per_channel(const JsonObject& config, const std::string& key, int64_t num_channels) {
  const Json* value = config.find(key);
  if (value == nullptr) return std::vector<double>(static_cast<size_t>(num_channels), 0.5);
  std::vector<double> numbers;
  if (value->is_array()) {
    for (const Json& item : *value) {
      if (item.is_number()) numbers.push_back(item.get<double>());
    }
  }
  // A model of other channels than its checkpoint's data had keeps their mean.
  const bool fits = value->is_array() && !numbers.empty() && numbers.size() == value->size();
  const bool positive = key != "std" || std::all_of(numbers.begin(), numbers.end(), [](double x) { return x > 0; });
  if (!fits || !positive)
    throw config.error(key,
                       Diagnostic::expected(key == "std" ? "numbers above 0" : "a list of numbers", describe(*value)));
  numbers.resize(static_cast<size_t>(num_channels), numbers.front());
  return numbers;
}

// The modules, walked once for all lists: linear(path, in, out), norm(path).
template <typename Linear, typename Norm>
void walk_blocks(
    const MixerArch& arch, Linear linear, Norm norm,
    const std::function<void(const std::string&)>& experts = [](const std::string&) {}) {
  for (int64_t i = 0; i < arch.num_blocks; ++i) {
    const std::string block = "blocks." + std::to_string(i);
    norm(block + ".norm1");
    linear(block + ".mlp_tokens.fc1", arch.num_patches(), arch.tokens_hidden_size);
    linear(block + ".mlp_tokens.fc2", arch.tokens_hidden_size, arch.num_patches());
    norm(block + ".norm2");
    if (arch.experts) {
      experts(block + ".moe");
    } else {
      linear(block + ".mlp_channels.fc1", arch.hidden_size, arch.channels_hidden_size);
      linear(block + ".mlp_channels.fc2", arch.channels_hidden_size, arch.hidden_size);
    }
  }
}

// A number whose product with `hidden_size`, cut to an integer as timm does, is `width`.
double mlp_ratio(int64_t width, int64_t hidden_size) {
  double ratio = static_cast<double>(width) / static_cast<double>(hidden_size);
  while (static_cast<int64_t>(ratio * static_cast<double>(hidden_size)) < width) ratio = std::nextafter(ratio, 1e300);
  return ratio;
}

// The released size with these patches, blocks and width, if there is one.
const Released* find_released(const MixerArch& arch) {
  const auto same = [&](const Released& released) {
    return released.hidden_size == arch.hidden_size && released.patch_size == arch.patch_size &&
           released.num_blocks == arch.num_blocks;
  };
  const auto found = std::find_if(kReleased.begin(), kReleased.end(), same);
  return found == kReleased.end() ? nullptr : &*found;
}

}  // namespace

MixerArch read_timm_mixer(const JsonObject& config) {
  MixerArch arch = released_size(config);
  read_input_size(config, arch);
  if (config.find("model_args") != nullptr) {
    const JsonObject args = config.object("model_args");
    args.refuse_other_keys({"img_size", "in_chans", "patch_size", "num_blocks", "embed_dim", "mlp_ratio", "num_classes",
                            "drop_rate", "proj_drop_rate", "drop_path_rate", "stem_norm", "global_pool", "nlhb"});
    refuse_other_mixers(args);
    arch.patch_size = args.integer("patch_size", 1, kMaxSize, arch.patch_size);
    arch.num_channels = args.integer("in_chans", 1, kMaxSize, arch.num_channels);
    arch.num_blocks = args.integer("num_blocks", 1, kMaxLayers, arch.num_blocks);
    arch.hidden_size = args.integer("embed_dim", 1, kMaxSize, arch.hidden_size);
    read_mlp_ratio(args, arch);
    read_image_size(args, "img_size", arch);
    check_image_size(args, "img_size", arch);
  }
  check_image_size(config, "pretrained_cfg.input_size", arch);
  read_own_keys(config, arch);
  return arch;
}

MixerArch read_mixer(const JsonObject& config) {
  config.refuse_other_keys({"model_type", "architecture", "image_size", "num_channels", "patch_size", "num_blocks",
                            "hidden_size", "tokens_hidden_size", "channels_hidden_size", "layer_norm_eps",
                            "hidden_act"});
  MixerArch arch;
  const bool named = config.find("architecture") != nullptr;
  if (named) arch = released_size(config);
  const auto size = [&](const char* key, int64_t high, int64_t from_name) {
    return config.integer(key, 1, high, named ? std::optional<int64_t>(from_name) : std::nullopt);
  };
  if (!named && config.find("image_size") == nullptr)
    throw config.error("image_size", Diagnostic::expected("an integer or [height, width]", "nothing"));
  read_image_size(config, "image_size", arch);
  arch.patch_size = size("patch_size", kMaxSize, arch.patch_size);
  arch.num_blocks = size("num_blocks", kMaxLayers, arch.num_blocks);
  arch.hidden_size = size("hidden_size", kMaxSize, arch.hidden_size);
  arch.num_channels = config.integer("num_channels", 1, kMaxSize, arch.num_channels);
  arch.tokens_hidden_size =
      config.integer("tokens_hidden_size", 1, kMaxSize, std::max<int64_t>(1, arch.hidden_size / 2));
  arch.channels_hidden_size =
      config.integer("channels_hidden_size", 1, kMaxSize, std::min(kMaxSize, 4 * arch.hidden_size));
  check_image_size(config, "image_size", arch);
  read_own_keys(config, arch);
  return arch;
}

ImageInput read_image_input(const JsonObject& config, const MixerArch& arch) {
  ImageInput input;
  input.crop_pct = 0.875;
  if (config.find("pretrained_cfg") == nullptr) {
    input.mean = input.std = std::vector<double>(static_cast<size_t>(arch.num_channels), 0.5);
    return input;
  }
  const JsonObject cfg = config.object("pretrained_cfg");
  input.mean = read_per_channel(cfg, "mean", arch.num_channels);
  input.std = read_per_channel(cfg, "std", arch.num_channels);
  input.interpolation = cfg.string("interpolation", input.interpolation);
  if (input.interpolation != "bicubic" && input.interpolation != "bilinear")
    throw cfg.error("interpolation", quote(input.interpolation) + " is not supported", "supported: bicubic, bilinear");
  input.crop_pct = cfg.number("crop_pct", input.crop_pct);
  if (input.crop_pct <= 0 || input.crop_pct > 1)
    throw cfg.error("crop_pct", Diagnostic::expected("a number in (0, 1]", describe(*cfg.find("crop_pct"))));
  return input;
}

Json timm_config(const MixerArch& arch, const ImageInput& input, const std::vector<std::string>& labels) {
  Json config;
  const Released* released = find_released(arch);
  config["architecture"] = (released == nullptr ? kReleased[1].name : released->name) + std::string(kSideSuffix);
  config["num_classes"] = labels.size();
  config["num_features"] = arch.hidden_size;
  config["global_pool"] = "avg";
  const Json side =
      arch.image_height == arch.image_width ? Json(arch.image_height) : Json({arch.image_height, arch.image_width});
  Json args = {
      {"img_size", side},
      {"in_chans", arch.num_channels},
      {"mlp_ratio",
       {mlp_ratio(arch.tokens_hidden_size, arch.hidden_size), mlp_ratio(arch.channels_hidden_size, arch.hidden_size)}}};
  // timm's factory refuses what the name implies already; its MlpMixer(**model_args) builds a size without a name.
  if (released == nullptr) {
    args["patch_size"] = arch.patch_size;
    args["num_blocks"] = arch.num_blocks;
    args["embed_dim"] = arch.hidden_size;
  }
  config["model_args"] = std::move(args);
  if (arch.hidden_act == Activation::GeluTanh) config["hidden_act"] = "gelu_tanh";
  if (arch.layer_norm_eps != MixerArch().layer_norm_eps) config["layer_norm_eps"] = arch.layer_norm_eps;
  if (arch.experts) config["moe"] = to_json(*arch.experts);
  config["pretrained_cfg"] = {{"num_classes", labels.size()},
                              {"input_size", {arch.num_channels, arch.image_height, arch.image_width}},
                              {"fixed_input_size", true},
                              {"interpolation", input.interpolation},
                              {"crop_pct", input.crop_pct},
                              {"mean", input.mean},
                              {"std", input.std},
                              {"first_conv", "stem.proj"},
                              {"classifier", "head"},
                              {"label_names", labels}};
  return config;
}

// Drawn as timm draws them: Glorot's uniform in the MLPs, with N(0, 1e-12) biases; LeCun's truncated normal in the
// stem, whose standard deviation is that before cutting; a head of zeros.
std::vector<ParameterSpec> classifier_parameters(const MixerArch& arch, int64_t num_labels) {
  constexpr double kStdOfCutNormal = 0.87962566103423978;
  constexpr Initial kOnes = {Initial::Kind::Constant, 1};
  const int64_t C = arch.hidden_size, P = arch.patch_size;
  std::vector<ParameterSpec> parameters;
  const double fan_in = static_cast<double>(arch.num_channels * P * P);
  parameters.push_back({"stem.proj.weight",
                        {C, arch.num_channels, P, P},
                        {Initial::Kind::TruncatedNormal, std::sqrt(1 / fan_in) / kStdOfCutNormal}});
  parameters.push_back({"stem.proj.bias", {C}});
  const auto norm = [&](const std::string& path) {
    parameters.push_back({path + ".weight", {C}, kOnes});
    parameters.push_back({path + ".bias", {C}});
  };
  walk_blocks(
      arch,
      [&](const std::string& path, int64_t in_features, int64_t out_features) {
        const double bound = std::sqrt(6 / static_cast<double>(in_features + out_features));
        parameters.push_back({path + ".weight", {out_features, in_features}, {Initial::Kind::Uniform, bound}});
        parameters.push_back({path + ".bias", {out_features}, {Initial::Kind::Normal, 1e-6}});
      },
      norm,
      [&](const std::string& path) {
        const double bound = std::sqrt(6 / static_cast<double>(C + arch.channels_hidden_size));
        const Initial matrix = {Initial::Kind::Uniform, bound}, bias = {Initial::Kind::Normal, 1e-6};
        const ExpertsShape shape{C,    arch.channels_hidden_size,    matrix, bias, matrix,
                                 bias, {Initial::Kind::Normal, 0.02}};
        const auto experts = mlp_expert_parameters(path, *arch.experts, shape);
        parameters.insert(parameters.end(), experts.begin(), experts.end());
      });
  norm("norm");
  parameters.push_back({"head.weight", {num_labels, C}});
  parameters.push_back({"head.bias", {num_labels}});
  return parameters;
}

std::vector<LinearSpec> classifier_linears(const MixerArch& arch, int64_t num_labels) {
  std::vector<LinearSpec> linears;
  walk_blocks(
      arch,
      [&](const std::string& path, int64_t in_features, int64_t out_features) {
        linears.push_back({path, in_features, out_features});
      },
      [](const std::string&) {},
      [&](const std::string& path) {
        const auto shared = shared_expert_linears(path, *arch.experts, arch.hidden_size, arch.channels_hidden_size);
        linears.insert(linears.end(), shared.begin(), shared.end());
      });
  linears.push_back({"head", arch.hidden_size, num_labels});
  return linears;
}

}  // namespace lathe::arch
