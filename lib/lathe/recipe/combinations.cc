#include <algorithm>

#include "lathe/arch/regex.h"
#include "lathe/formats/four_bit.h"
#include "lathe/recipe/checks.h"

namespace lathe::recipe {
namespace {

class CombinationChecker {
 public:
  CombinationChecker(const Recipe& recipe, const std::string& file) : recipe_(recipe), file_(file) {}

  void require(bool condition, const std::string& key, const std::string& problem, const std::string& hint = "") {
    if (condition) return;
    Diagnostic diagnostic = recipe_.at(key);
    if (recipe_.places.find(key) == recipe_.places.end()) {
      diagnostic = recipe_.at(key.substr(0, key.find('.')));  // the section's place; the file when that is missing too
      diagnostic.key = key;
      if (diagnostic.line == 0) diagnostic.file = file_;
    }
    diagnostic.problem = problem;
    diagnostic.hint = hint;
    mistakes.push_back(std::move(diagnostic));
  }
  Diagnostic at(const std::string& key) const { return recipe_.at(key); }
  bool has(const std::string& key) const { return recipe_.places.find(key) != recipe_.places.end(); }

  std::vector<Diagnostic> mistakes;

 private:
  const Recipe& recipe_;
  const std::string& file_;
};

void check_model(const Model& model, CombinationChecker& c) {
  const bool random = model.init == Init::Random;
  c.require(random || !model.path.text.empty(), "model.path", "is required unless model.init is random");
  c.require(!model.arch || random, "model.arch", "needs model.init: random");
  c.require(!random || model.arch || !model.path.text.empty(), "model.init",
            "random needs model.arch, or model.path for its config.json");
  if (!model.moe || !random) return;  // a checkpoint brings what is not given
  for (const arch::ExpertsMistake& mistake : arch::check_mlp_experts(model.moe->over({})))
    c.require(false, "model.moe." + mistake.key, mistake.problem);
}

void check_adapter(const Adapter& adapter, CombinationChecker& c) {
  if (adapter.type == AdapterType::None) {
    const auto meaningless = [&c](bool given, const char* key) {
      c.require(!given, key, "has no meaning with adapter.type: none");
    };
    meaningless(adapter.rank.has_value(), "adapter.rank");
    meaningless(adapter.alpha.has_value(), "adapter.alpha");
    meaningless(adapter.dropout != 0, "adapter.dropout");
    meaningless(adapter.target_modules.has_value(), "adapter.target_modules");
    meaningless(!adapter.rank_pattern.empty(), "adapter.rank_pattern");
    meaningless(!adapter.alpha_pattern.empty(), "adapter.alpha_pattern");
    meaningless(adapter.from.has_value(), "adapter.from");
    meaningless(!adapter.modules_to_save.empty(), "adapter.modules_to_save");
    meaningless(!adapter.exclude_modules.empty(), "adapter.exclude_modules");
    meaningless(adapter.scaling != Scaling::Standard, "adapter.scaling");
    return;
  }
  c.require(adapter.from || adapter.rank, "adapter.rank", "is required unless adapter.from is given");
  c.require(adapter.from || adapter.alpha, "adapter.alpha", "is required unless adapter.from is given");
  for (const auto& [pattern, rank] : adapter.rank_pattern) {
    c.require(rank >= 1 && static_cast<double>(rank) <= kMaxRank, "adapter.rank_pattern",
              Diagnostic::expected("ranks from 1 to 65536", std::to_string(rank)));
  }
  for (const auto& [pattern, alpha] : adapter.alpha_pattern) {
    c.require(alpha > 0 && alpha <= kMaxAlpha, "adapter.alpha_pattern",
              Diagnostic::expected("numbers above 0, at most 1e9", config::write_number(alpha)));
  }
  c.require(!adapter.from || adapter.init == AdapterInit::Default, "adapter.init", "excludes adapter.from");
}

void check_quant(const Recipe& recipe, CombinationChecker& c) {
  const Quant& quant = recipe.quant;
  c.require(formats::is_four_bit_blocksize(quant.blocksize), "quant.blocksize",
            Diagnostic::expected("32, 64, 128, ..., 4096", std::to_string(quant.blocksize)));
  if (quant.type == QuantType::None) return;
  c.require(recipe.adapter.type != AdapterType::None, "quant.type",
            "needs an adapter: a weight in four bits cannot train");
}

void check_data(const Data& data, CombinationChecker& c) {
  c.require(!data.train.empty(), "data.train", Diagnostic::expected("a path or a list of paths", "none"));
  c.require(data.eval.empty() || data.eval_fraction == 0, "data.eval_fraction", "excludes data.eval");
  std::vector<std::string> sorted = data.labels;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  c.require(twice == sorted.end(), "data.labels", "has " + (twice == sorted.end() ? "" : quote(*twice)) + " twice");
  c.require(data.labels.size() != 1, "data.labels", "expected at least two labels, got 1");
}

// What only pictures, or only texts, have.
void check_kind_of_data(const Recipe& recipe, CombinationChecker& c) {
  const Data& data = recipe.data;
  const bool images = recipe.model.task == Task::ImageClassification;
  const std::vector<std::string> known = {images ? "path" : "text", "label"};
  for (const auto& [own, theirs] : data.fields) {
    const bool fallback = own == "text" && theirs == "text";
    c.require(fallback || own == known[0] || own == known[1], "data.fields", "unknown field " + quote(own),
              suggest(own, known));
  }
  const bool image_format = data.format >= DataFormat::Idx;
  c.require(data.format == DataFormat::Auto || image_format == images, "data.format",
            config::Codec<DataFormat>::write(data.format) + " has no meaning for task " +
                config::Codec<Task>::write(recipe.model.task));
  if (images) {
    c.require(!recipe.model.max_length, "model.max_length", "has no meaning for images");
    c.require(data.truncation == Truncation::Right, "data.truncation", "has no meaning for images");
    c.require(!data.packing, "data.packing", "has no meaning for images");
  } else {
    c.require(!data.image, "data.image", "needs model.task: image_classification");
    c.require(data.num_workers == 1, "data.num_workers", "needs model.task: image_classification");
  }
}

void check_image(const Image& image, CombinationChecker& c) {
  c.require(image.std.empty() || *std::min_element(image.std.begin(), image.std.end()) > 0, "data.image.std",
            "expected numbers above 0");
  const auto& augment = image.augment;
  const bool mixup = std::find(augment.begin(), augment.end(), Augmentation::Mixup) != augment.end();
  c.require(mixup || image.mixup_alpha == Image().mixup_alpha, "data.image.mixup_alpha", "needs mixup in augment");
}

void check_optimizer(const Optimizer& optimizer, CombinationChecker& c) {
  const bool in_range =
      std::all_of(optimizer.betas.begin(), optimizer.betas.end(), [](double beta) { return beta >= 0 && beta < 1; });
  c.require(optimizer.betas.size() == 2 && in_range, "optimizer.betas", "expected two numbers in [0, 1)");
  const bool wsd = optimizer.schedule == ScheduleType::Wsd;
  c.require(!wsd || optimizer.num_decay_steps, "optimizer.num_decay_steps", "is required for schedule wsd");
  c.require(wsd || !optimizer.num_decay_steps, "optimizer.num_decay_steps", "needs schedule: wsd");
  c.require(optimizer.min_lr_ratio == 0 || wsd || optimizer.schedule == ScheduleType::Cosine, "optimizer.min_lr_ratio",
            "needs schedule cosine or wsd");
  const bool sgd = optimizer.type == OptimizerType::Sgd;
  c.require(sgd || optimizer.momentum == 0, "optimizer.momentum", "needs type: sgd");
  c.require(sgd || !optimizer.nesterov, "optimizer.nesterov", "needs type: sgd");
  for (size_t i = 0; i < optimizer.groups.size(); ++i) {
    try {
      (void)arch::Regex(optimizer.groups[i].pattern, c.at("optimizer.groups[" + std::to_string(i) + "].pattern"));
    } catch (const Error& error) {
      c.mistakes.insert(c.mistakes.end(), error.diagnostics().begin(), error.diagnostics().end());
    }
  }
  const auto group_ok = [](const ParameterGroup& group) { return group.lr || group.weight_decay; };
  c.require(std::all_of(optimizer.groups.begin(), optimizer.groups.end(), group_ok), "optimizer.groups",
            "a group needs lr or weight_decay");
}

void check_training(const Training& training, CombinationChecker& c) {
  c.require(training.epochs || training.max_steps,
            c.has("training.max_steps") ? "training.max_steps" : "training.epochs", "epochs or max_steps is required");
  c.require(!(training.epochs && training.max_steps), "training.max_steps", "excludes training.epochs",
            "~training.epochs among the words of the command removes the other");
  const bool automatic = !training.batch_size.samples;
  c.require(!automatic || training.global_batch_size, "training.global_batch_size",
            "is required with batch_size: auto");
  c.require(automatic || !training.global_batch_size, "training.global_batch_size", "needs batch_size: auto");
  c.require(!automatic || training.gradient_accumulation_steps == 1, "training.gradient_accumulation_steps",
            "excludes batch_size: auto");
}

}  // namespace

std::vector<Diagnostic> check_combinations(const Recipe& recipe, const std::string& file) {
  CombinationChecker checker(recipe, file);
  check_model(recipe.model, checker);
  check_adapter(recipe.adapter, checker);
  check_quant(recipe, checker);
  check_data(recipe.data, checker);
  check_kind_of_data(recipe, checker);
  if (recipe.data.image) check_image(*recipe.data.image, checker);
  check_optimizer(recipe.optimizer, checker);
  check_training(recipe.training, checker);
  checker.require(!recipe.output.dir.text.empty(), "output.dir", "expected a path, got nothing");
  const Quant none;
  checker.require(recipe.quant.type != QuantType::None || recipe.quant.blocksize == none.blocksize, "quant.blocksize",
                  "has no meaning with quant.type: none");
  checker.require(recipe.quant.type != QuantType::None || !recipe.quant.double_quant, "quant.double_quant",
                  "has no meaning with quant.type: none");
  const bool evaluates = !recipe.data.eval.empty() || recipe.data.eval_fraction > 0;
  checker.require(evaluates || !recipe.training.early_stopping, "training.early_stopping",
                  "needs data.eval or data.eval_fraction");
  checker.require(evaluates || !recipe.training.keep_best, "training.keep_best",
                  "needs data.eval or data.eval_fraction");
  return std::move(checker.mistakes);
}

}  // namespace lathe::recipe
