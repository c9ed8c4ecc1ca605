#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/arch/arch.h"
#include "lathe/arch/checkpoint.h"
#include "lathe/arch/targets.h"
#include "lathe/formats/adapter_directory.h"
#include "lathe/formats/model_directory.h"
#include "lathe/recipe/recipe.h"

namespace lathe::recipe {

/// A recipe's model as its files describe it: headers only, no weight is read.
struct ResolvedModel {
  formats::ModelDirectory directory;              ///< no tensors when weights are drawn; no path with model.arch alone
  arch::ModelConfig config;                       ///< with the recipe's dropout, and its image preprocessing
  std::optional<formats::AdapterConfig> adapter;  ///< none: every weight trains
  std::vector<arch::Target> targets;              ///< the layers to adapt
  std::vector<std::string> labels;  ///< of the recipe, else of adapter.from, else of the checkpoint; empty: of the data
  int64_t max_length = 0;           ///< tokens per sample, at most; of an image model its patches
  bool random = false;              ///< weights are drawn

  /// `wanted`; of a decoder, auto is what its largest tensor has, without weights what config.json says.
  StorageType stored_dtype(StorageType wanted) const;
  /// How the weights are filled; those of a decoder with experts, or of config.json alone, count as new.
  arch::CheckpointMatch match(int64_t num_labels) const;
};

/// Reads the headers and checks the recipe against them: architecture, tensors and shapes, targets, lengths.
/// Throws Error{Data} for bad files and Error{Config}, with the recipe's places, for a recipe that does not fit them.
ResolvedModel resolve_model(const Recipe& recipe);

/// What the tokenizer and the model allow: min(tokenizer_config.model_max_length, positions).
int64_t default_max_length(const formats::ModelDirectory& directory, const arch::Arch& arch);

}  // namespace lathe::recipe
