#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "lathe/arch/mlp_experts.h"
#include "lathe/base/json.h"
#include "lathe/config/bind.h"

/// The words and the composite values of a recipe.
namespace lathe::recipe {

enum class Task { CausalLm, Classification, ImageClassification };
enum class Init { Checkpoint, Random };
/// Bounds that no sane recipe meets, so that nothing computed from it overflows.
inline constexpr double kMaxCount = 1e9, kMaxRank = 65536, kMaxAlpha = 1e9, kMaxThreads = 1024;

enum class StorageType { Auto, Float32, BFloat16 };
enum class AdapterType { LoRA, DoRA, None };
enum class Scaling { Standard, RsLoRA };
enum class AdapterInit { Default, Gaussian, Pissa, Orthogonal };
enum class QuantType { None, Nf4, Fp4 };
enum class DataFormat {
  Auto,
  TextLabel,
  Tokens,
  Messages,
  ShareGpt,
  Alpaca,
  PromptCompletion,
  Text,
  Idx,
  ImageFolder,
  ImageList
};
enum class TrainOn { Completion, All };
enum class Truncation { Right, Left, Drop };
enum class Resize { Bicubic, Bilinear };
enum class Augmentation { Flip, Crop, Mixup };
enum class OptimizerType { AdamW, Adam, Sgd };
enum class ScheduleType { Constant, Linear, Cosine, InverseSqrt, Wsd };
enum class Measure { EvalLoss, Perplexity, Accuracy, F1 };
enum class OnNonfinite { Abort, Skip };

/// Names of modules, or one regular expression ("all-linear" is a word of its own).
struct Names {
  std::variant<std::vector<std::string>, std::string> value;
};

/// A number of samples, or "auto".
struct BatchSize {
  std::optional<int64_t> samples = 1;  ///< none: auto
};

/// One side for a square, or height and width.
struct ImageSize {
  int64_t height = 224, width = 224;
};

/// none | elementwise | full | {every: n} | {layers: m} | {budget: "8 GiB"}
struct Checkpointing {
  enum class Kind { None, Elementwise, Full, Every, Layers, Budget } kind = Kind::None;
  int64_t count = 0;         ///< of every and layers
  std::string budget{};      ///< of budget, as written
  int64_t budget_bytes = 0;  ///< the same
};

/// auto | cpu | cuda | cuda:N
struct Device {
  std::string text = "auto";
};

/// A mapping of keys that others check, for arch.
struct FreeMapping {
  std::string text;
  Json json;
};

}  // namespace lathe::recipe

namespace lathe::config {

template <typename Enum, size_t N>
using WordList = std::array<std::pair<Enum, const char*>, N>;

template <>
struct Words<recipe::Task> {
  using enum recipe::Task;
  static constexpr WordList<recipe::Task, 3> kWords = {
      {{CausalLm, "causal_lm"}, {Classification, "classification"}, {ImageClassification, "image_classification"}}};
};
template <>
struct Words<recipe::Init> {
  using enum recipe::Init;
  static constexpr WordList<recipe::Init, 2> kWords = {{{Checkpoint, "checkpoint"}, {Random, "random"}}};
};
template <>
struct Words<recipe::StorageType> {
  using enum recipe::StorageType;
  static constexpr WordList<recipe::StorageType, 3> kWords = {
      {{Auto, "auto"}, {Float32, "float32"}, {BFloat16, "bfloat16"}}};
};
template <>
struct Words<recipe::AdapterType> {
  using enum recipe::AdapterType;
  static constexpr WordList<recipe::AdapterType, 3> kWords = {{{LoRA, "lora"}, {DoRA, "dora"}, {None, "none"}}};
};
template <>
struct Words<recipe::Scaling> {
  using enum recipe::Scaling;
  static constexpr WordList<recipe::Scaling, 2> kWords = {{{Standard, "standard"}, {RsLoRA, "rslora"}}};
};
template <>
struct Words<recipe::AdapterInit> {
  using enum recipe::AdapterInit;
  static constexpr WordList<recipe::AdapterInit, 4> kWords = {
      {{Default, "default"}, {Gaussian, "gaussian"}, {Pissa, "pissa"}, {Orthogonal, "orthogonal"}}};
};
template <>
struct Words<arch::MlpExperts::Router> {
  using enum arch::MlpExperts::Router;
  static constexpr WordList<arch::MlpExperts::Router, 5> kWords = {{{Softmax, "softmax"},
                                                                    {Sigmoid, "sigmoid"},
                                                                    {Noisy, "noisy"},
                                                                    {ExpertChoice, "expert_choice"},
                                                                    {Random, "random"}}};
};
template <>
struct Words<recipe::QuantType> {
  using enum recipe::QuantType;
  static constexpr WordList<recipe::QuantType, 3> kWords = {{{None, "none"}, {Nf4, "nf4"}, {Fp4, "fp4"}}};
};
template <>
struct Words<recipe::DataFormat> {
  using enum recipe::DataFormat;
  static constexpr WordList<recipe::DataFormat, 11> kWords = {{{Auto, "auto"},
                                                               {TextLabel, "text_label"},
                                                               {Tokens, "tokens"},
                                                               {Messages, "messages"},
                                                               {ShareGpt, "sharegpt"},
                                                               {Alpaca, "alpaca"},
                                                               {PromptCompletion, "prompt_completion"},
                                                               {Text, "text"},
                                                               {Idx, "idx"},
                                                               {ImageFolder, "image_folder"},
                                                               {ImageList, "image_list"}}};
};
template <>
struct Words<recipe::TrainOn> {
  using enum recipe::TrainOn;
  static constexpr WordList<recipe::TrainOn, 2> kWords = {{{Completion, "completion"}, {All, "all"}}};
};
template <>
struct Words<recipe::Truncation> {
  using enum recipe::Truncation;
  static constexpr WordList<recipe::Truncation, 3> kWords = {{{Right, "right"}, {Left, "left"}, {Drop, "drop"}}};
};
template <>
struct Words<recipe::Resize> {
  using enum recipe::Resize;
  static constexpr WordList<recipe::Resize, 2> kWords = {{{Bicubic, "bicubic"}, {Bilinear, "bilinear"}}};
};
template <>
struct Words<recipe::Augmentation> {
  using enum recipe::Augmentation;
  static constexpr WordList<recipe::Augmentation, 3> kWords = {{{Flip, "flip"}, {Crop, "crop"}, {Mixup, "mixup"}}};
};
template <>
struct Words<recipe::OptimizerType> {
  using enum recipe::OptimizerType;
  static constexpr WordList<recipe::OptimizerType, 3> kWords = {{{AdamW, "adamw"}, {Adam, "adam"}, {Sgd, "sgd"}}};
};
template <>
struct Words<recipe::ScheduleType> {
  using enum recipe::ScheduleType;
  static constexpr WordList<recipe::ScheduleType, 5> kWords = {
      {{Constant, "constant"}, {Linear, "linear"}, {Cosine, "cosine"}, {InverseSqrt, "inverse_sqrt"}, {Wsd, "wsd"}}};
};
template <>
struct Words<recipe::Measure> {
  using enum recipe::Measure;
  static constexpr WordList<recipe::Measure, 4> kWords = {
      {{EvalLoss, "eval_loss"}, {Perplexity, "perplexity"}, {Accuracy, "accuracy"}, {F1, "f1"}}};
};
template <>
struct Words<recipe::OnNonfinite> {
  using enum recipe::OnNonfinite;
  static constexpr WordList<recipe::OnNonfinite, 2> kWords = {{{Abort, "abort"}, {Skip, "skip"}}};
};

template <>
struct Codec<recipe::Names> {
  static std::string name() { return "a list of strings, all-linear or a regular expression"; }
  static bool read(const YamlNode& node, recipe::Names& names);
  static std::string write(const recipe::Names& names);
};
template <>
struct Codec<recipe::BatchSize> {
  static std::string name() { return "an integer in [1, 1000000000] or auto"; }
  static bool read(const YamlNode& node, recipe::BatchSize& size);
  static std::string write(const recipe::BatchSize& size);
};
template <>
struct Codec<recipe::ImageSize> {
  static std::string name() { return "an integer >= 1 or [height, width]"; }
  static bool read(const YamlNode& node, recipe::ImageSize& size);
  static std::string write(const recipe::ImageSize& size);
};
template <>
struct Codec<recipe::Checkpointing> {
  static std::string name() { return "none, elementwise, full, {every: n}, {layers: m} or {budget: \"8 GiB\"}"; }
  static bool read(const YamlNode& node, recipe::Checkpointing& checkpointing);
  static std::string write(const recipe::Checkpointing& checkpointing);
};
template <>
struct Codec<recipe::Device> {
  static std::string name() { return "auto, cpu, cuda or cuda:N"; }
  static bool read(const YamlNode& node, recipe::Device& device);
  static std::string write(const recipe::Device& device) { return device.text; }
};
template <>
struct Codec<recipe::FreeMapping> {
  static std::string name() { return "a mapping"; }
  static bool read(const YamlNode& node, recipe::FreeMapping& mapping);
  static std::string write(const recipe::FreeMapping& mapping) { return mapping.text; }
};

}  // namespace lathe::config
