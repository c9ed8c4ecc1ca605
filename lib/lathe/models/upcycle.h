#pragma once

#include <cstdint>
#include <filesystem>

#include "lathe/arch/mlp_experts.h"
#include "lathe/formats/model_directory.h"

namespace lathe::models {

/// Writes a model with experts in the place of a dense model's MLPs: every expert a copy of its MLP, the routers new,
/// N(0, 0.02²) from counters, shared experts new, with a second matrix of zeros. With gates that sum to 1 it computes
/// what the dense model does, whatever the routers choose; their task gradient is then zero at first, and only the
/// balance loss moves them. Source: Komatsuzaki et al. 2022, "Sparse upcycling" (arXiv:2212.05055).
///
/// `out` must exist; it gets model.safetensors (one tensor in memory at a time), config.json with `moe`, the
/// tokenizer's files. Returns the number of MLPs.
/// Throws Error{Data} for a family that is not known, a model that has experts, weights in four bits.
int64_t upcycle(const formats::ModelDirectory& model, const arch::MlpExperts& experts, uint64_t seed,
                const std::filesystem::path& out);

}  // namespace lathe::models
