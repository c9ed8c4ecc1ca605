#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lathe/arch/mlp_experts.h"
#include "lathe/config/bind.h"
#include "lathe/recipe/values.h"

namespace lathe::recipe {

using config::Path;

struct Moe {
  // Absent: as the checkpoint has it, or the default of arch::MlpExperts.
  std::optional<int64_t> num_experts, top_k;
  std::optional<arch::MlpExperts::Router> router;
  std::optional<bool> renormalise;
  std::optional<double> capacity_factor;
  std::optional<int64_t> shared_experts;
  std::optional<double> aux_loss_weight, z_loss_weight, bias_update_rate, jitter;
  template <typename V>
  void visit(V& v);

  /// `base` with what is given here.
  arch::MlpExperts over(arch::MlpExperts base) const;
};

struct Model {
  Path path;
  Task task = Task::Classification;
  Init init = Init::Checkpoint;
  std::optional<FreeMapping> arch;
  std::optional<Moe> moe;
  StorageType dtype = StorageType::Auto, compute = StorageType::Auto;
  std::optional<double> dropout;
  std::optional<int64_t> max_length;
  template <typename V>
  void visit(V& v);
};

struct Adapter {
  AdapterType type = AdapterType::None;
  std::optional<int64_t> rank;
  std::optional<double> alpha;
  Scaling scaling = Scaling::Standard;
  double dropout = 0;
  std::optional<Names> target_modules;  ///< absent: the family's usual ones
  std::vector<std::string> exclude_modules, modules_to_save;
  std::vector<std::pair<std::string, int64_t>> rank_pattern;
  std::vector<std::pair<std::string, double>> alpha_pattern;
  AdapterInit init = AdapterInit::Default;
  std::optional<Path> from;
  template <typename V>
  void visit(V& v);
};

struct Quant {
  QuantType type = QuantType::None;
  int64_t blocksize = 64;
  bool double_quant = false;
  std::vector<std::string> skip_modules = {"classifier", "score", "lm_head", "head"};
  template <typename V>
  void visit(V& v);
};

struct Image {
  std::optional<ImageSize> size;  ///< absent, as the next three: the model's
  std::optional<Resize> resize;
  std::vector<double> mean, std;
  std::vector<Augmentation> augment;
  double mixup_alpha = 0.2;
  template <typename V>
  void visit(V& v);
};

struct Data {
  std::vector<Path> train, eval;
  double eval_fraction = 0;
  DataFormat format = DataFormat::Auto;
  std::vector<std::pair<std::string, std::string>> fields = {{"text", "text"}, {"label", "label"}};
  std::vector<std::string> labels;
  double label_smoothing = 0;
  TrainOn train_on = TrainOn::Completion;
  bool packing = false, shuffle = true;
  Truncation truncation = Truncation::Right;
  std::optional<Image> image;
  int64_t num_workers = 1;

  /// The name in the files of one of Lathe's fields ("text", "path", "label").
  std::string field(const std::string& name) const;
  template <typename V>
  void visit(V& v);
};

struct ParameterGroup {
  std::string pattern;
  std::optional<double> lr, weight_decay;
  template <typename V>
  void visit(V& v);
};

struct Optimizer {
  OptimizerType type = OptimizerType::AdamW;
  double lr = 0;
  std::vector<double> betas = {0.9, 0.999};
  double eps = 1e-8, momentum = 0;
  bool nesterov = false;
  double weight_decay = 0.01;
  std::vector<ParameterGroup> groups;
  double lora_plus_ratio = 1;
  ScheduleType schedule = ScheduleType::Cosine;
  int64_t num_warmup_steps = 0;
  std::optional<int64_t> num_decay_steps;
  double min_lr_ratio = 0, clip_grad_norm = 1;
  template <typename V>
  void visit(V& v);
};

struct EarlyStopping {
  int64_t patience = 1;
  Measure measure = Measure::EvalLoss;
  template <typename V>
  void visit(V& v);
};

struct KeepBest {
  Measure measure = Measure::EvalLoss;
  template <typename V>
  void visit(V& v);
};

struct Training {
  std::optional<int64_t> epochs, max_steps;  ///< exactly one
  BatchSize batch_size;
  std::optional<int64_t> global_batch_size;
  int64_t gradient_accumulation_steps = 1;
  Checkpointing activation_checkpointing;
  Device device;
  int64_t threads = 0, seed = 0, eval_every_steps = 0;
  std::optional<EarlyStopping> early_stopping;
  std::optional<KeepBest> keep_best;
  int64_t checkpoint_every_steps = 0;
  double checkpoint_every_minutes = 0;
  int64_t keep_checkpoints = 2;
  OnNonfinite on_nonfinite = OnNonfinite::Abort;

  /// Whether a checkpoint is written while training goes on, from copies; the last one takes none.
  bool saves_between_steps() const { return checkpoint_every_steps > 0 || checkpoint_every_minutes > 0 || keep_best; }
  template <typename V>
  void visit(V& v);
};

struct Output {
  Path dir;
  int64_t log_every_steps = 1;
  bool tensorboard = false, merged = false;
  template <typename V>
  void visit(V& v);
};

/// Everything that a run is told: spec in the README's key table, printed by schema().
struct Recipe {
  Model model;
  Adapter adapter;
  Quant quant;
  Data data;
  Optimizer optimizer;
  Training training;
  Output output;
  std::map<std::string, config::Place> places;  ///< of the keys that the document has

  /// The place of `key` for a message, with the key itself.
  Diagnostic at(const std::string& key) const;
  template <typename V>
  void visit(V& v);
};

/// What a recipe is read for: a plan also reckons with what a run cannot do yet.
enum class Purpose { Run, Plan };

/// Reads a recipe: a file, or the name of a ready one; then overrides (`a.b=value`, `~a.b`). Every mistake of form,
/// range and combination is reported at once. Throws Error{Config}.
Recipe load(const std::string& file_or_name, const std::vector<std::string>& overrides = {},
            Purpose purpose = Purpose::Run);
/// The same from text; relative input paths start at `base`.
Recipe parse(const std::string& text, const std::string& file, const std::string& base,
             const std::vector<std::string>& overrides = {}, Purpose purpose = Purpose::Run);

/// The resolved recipe: every key with its value, paths absolute. Reads back equal.
std::string to_yaml(const Recipe& recipe);
/// Every key with type, default and meaning.
std::string schema();

/// The dotted keys in which two recipes differ.
std::vector<std::string> changed_keys(const Recipe& a, const Recipe& b);

/// A recipe that is built into the program.
struct ReadyRecipe {
  std::string name;     ///< its path below recipes/, without .yaml
  std::string purpose;  ///< the first comment line
  std::string text;
};
const std::vector<ReadyRecipe>& ready_recipes();
/// Null when there is none of that name.
const ReadyRecipe* find_ready_recipe(const std::string& name);

}  // namespace lathe::recipe
