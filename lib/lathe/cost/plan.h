#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lathe/base/json.h"
#include "lathe/cost/model.h"

namespace lathe::cost {

/// What a recipe will cost, from the recipe and the checkpoint's headers alone. Operations count 2 for each
/// multiply-add of the products; element-wise work (under 1 %) is left out. Samples are as long as the recipe allows,
/// so that shorter ones cost less.
struct Plan {
  struct Parameters {
    Amount base = 0, adapter = 0, trainable = 0;
    Amount active = 0;                                    ///< of the base: what one token meets
    std::vector<std::pair<std::string, Amount>> kinds{};  ///< of the base: embeddings, attention, mlp, ...
    Amount total() const { return base + adapter; }
  } parameters;

  /// Of one optimizer step, all its micro-batches.
  struct Flops {
    Amount forward = 0, backward = 0, recompute = 0;
    Amount linear = 0, adapter = 0, attention = 0;  ///< the same sum, by what it is spent on
    Amount head = 0;                                ///< part of `linear`
    Amount total() const { return forward + backward + recompute; }
  } flops;

  /// Live bytes: of LibTorch's allocator, and of mapped weights that are read. The process's own base is not in it.
  struct Memory {
    Amount weights = 0;          ///< frozen and trained
    Amount trained_weights = 0;  ///< of them; in float32: where the storage is 16 bits, the master copies
    Amount gradients = 0;        ///< of the parameters
    Amount optimizer = 0;        ///< its state
    Amount checkpoint = 0;       ///< the copy that is written while training goes on
    Amount activations = 0;      ///< kept between the forward and the backward pass of a micro-batch
    Amount outputs = 0;          ///< of every operator of that forward pass, kept: the textbook's activations
    std::vector<std::pair<std::string, Amount>> kept{};  ///< the activations by the part of the model that made them
    Amount logits = 0;
    Amount peak = 0;
    std::string peak_phase;                                ///< loading, forward, backward, optimizer, evaluation
    std::vector<std::pair<std::string, Amount>> phases{};  ///< the peak of each of them
    /// What is live at the peak: weights, optimizer, checkpoint, gradients, activations, and what else the backward
    /// pass made; or what loading holds. They add up to it.
    std::vector<std::pair<std::string, Amount>> at_peak{};
  } memory;

  int64_t batch_size = 0, gradient_accumulation_steps = 0, max_length = 0, threads = 0;  ///< threads 0: all
  recipe::Checkpointing checkpointing;
  bool master_copies = false;  ///< weights train that the recipe stores in 16 bits
  std::string assumes{};       ///< what the operations and bytes rest on besides Lathe's own modules, a line each
  Amount moved_bytes = 0;      ///< of an optimizer step: what it writes, and what it reads of that once
};

/// The plan of a recipe without open choices (see settle()). `loads`: of the experts of each layer, where they are
/// known; no plan knows beforehand how routers will spread the tokens.
Plan make_plan(const recipe::Recipe& recipe, const recipe::ResolvedModel& resolved, std::vector<ExpertLoad> loads = {});

/// The same of a model that is known already: only training and data of the recipe count.
Plan make_plan(const recipe::Recipe& recipe, const TrainedModel& model);

/// seconds_per_step is null when `seconds` is none.
Json to_json(const Plan& plan, std::optional<double> seconds);

}  // namespace lathe::cost
