#pragma once

#include <string>

#include "lathe/train/classifier.h"

namespace lathe::train {

/// Writes what was trained: the adapter directory, of images with their preprocessing.
void save_adapter(const Classifier& classifier, const std::string& directory);

/// Writes a model directory that transformers or timm opens, adapters merged: model.safetensors, config.json with the
/// labels and the preprocessing, the tokenizer's files. A base in four bits is decoded: the update is added in float32
/// to the weights that it was trained on, and the sum rounded once to the storage of the other matrices. One merged
/// weight is in memory at a time.
void save_model(const Classifier& classifier, const std::string& directory);

/// The same in four bits, each weight of a linear layer quantised as its base is; experts are written dense. Most of a
/// small update is lost: it moves few weights from one code to another. Returns ‖(Ŵ' - Ŵ) - ΔW‖ / ‖ΔW‖ over all adapted
/// weights: the share that is lost. Throws Error{Config} when no weight is in four bits.
double save_requantised(const Classifier& classifier, const std::string& directory);

}  // namespace lathe::train
