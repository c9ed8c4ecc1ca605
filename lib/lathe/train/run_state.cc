#include "lathe/train/run_state.h"

#include <ATen/core/grad_mode.h>

#include <cmath>

#include "lathe/base/error.h"
#include "lathe/config/bind.h"
#include "lathe/io/tensors.h"
#include "lathe/train/measures.h"

namespace lathe::train {
namespace {

constexpr const char* kStateFile = "state.json";

Json best_to_json(const std::optional<Best>& best) {
  if (!best) return nullptr;
  return {{"measure", config::Codec<recipe::Measure>::write(best->measure)},
          {"value", best->value},
          {"step", best->step},
          {"evaluations_since", best->evaluations_since}};
}

std::optional<Best> best_from_json(const JsonObject& state, const std::string& key) {
  if (state.find(key) == nullptr) return std::nullopt;
  const JsonObject best = state.object(key);
  recipe::Measure measure{};
  for (const auto& [known, word] : config::Words<recipe::Measure>::kWords) {
    if (word == best.string("measure")) measure = known;
  }
  return Best{measure, best.number("value"), best.integer("step", 0, INT64_MAX),
              best.integer("evaluations_since", 0, INT64_MAX)};
}

}  // namespace

optim::NamedTensors copies(const optim::NamedTensors& tensors) {
  const at::NoGradGuard no_grad;
  optim::NamedTensors result;
  for (const auto& [name, tensor] : tensors) result.emplace_back(name, tensor.detach().clone());
  return result;
}

bool note_evaluation(std::optional<Best>& best, recipe::Measure measure, double value, int64_t step) {
  const bool better = std::isfinite(value) && (!best || is_better(measure, value, best->value));
  if (better) {
    best = Best{measure, value, step, 0};
  } else if (best) {
    ++best->evaluations_since;
  }
  return better;
}

bool RunState::note_nonfinite(int64_t nonfinite_step) {
  constexpr size_t kMaxInARow = 3, kMaxInAThousand = 10;
  // A step that is taken again, after a checkpoint of before it, counts once.
  std::erase_if(nonfinite, [&](int64_t noted) { return noted <= nonfinite_step - 1000 || noted >= nonfinite_step; });
  nonfinite.push_back(nonfinite_step);
  const bool in_a_row =
      nonfinite.size() >= kMaxInARow && nonfinite[nonfinite.size() - kMaxInARow] == nonfinite_step - 2;
  return !in_a_row && nonfinite.size() <= kMaxInAThousand;
}

Json RunState::to_json() const {
  return {{"step", step},
          {"evaluation_pending", evaluation_pending},
          {"stopped_early", stopped_early},
          {"best", best_to_json(best)},
          {"early", best_to_json(early)},
          {"nonfinite", nonfinite},
          {"metrics_bytes", metrics.bytes},
          {"metrics_waiting", metrics.waiting},
          {"fingerprints", fingerprints},
          {"environment", environment}};
}

RunState RunState::from_json(const Json& json, const std::string& file) {
  const JsonObject object(json, file);
  RunState state;
  state.step = object.integer("step", 0, INT64_MAX);
  state.evaluation_pending = object.boolean("evaluation_pending");
  state.stopped_early = object.boolean("stopped_early");
  state.best = best_from_json(object, "best");
  state.early = best_from_json(object, "early");
  if (const Json* steps = object.find("nonfinite"); steps != nullptr && steps->is_array()) {
    for (const Json& step : *steps) {
      if (!step.is_number_integer()) throw object.error("nonfinite", Diagnostic::expected("steps", describe(step)));
      state.nonfinite.push_back(step.get<int64_t>());
    }
  }
  state.metrics.bytes = static_cast<uint64_t>(object.integer("metrics_bytes", 0, INT64_MAX));
  state.metrics.waiting = object.string("metrics_waiting");
  const JsonObject fingerprints = object.object("fingerprints");
  for (const auto& [name, unused] : fingerprints.json().items()) state.fingerprints[name] = fingerprints.string(name);
  state.environment = object.string("environment");
  return state;
}

void Snapshot::write(const std::filesystem::path& directory) const {
  io::write_safetensors((directory / kWeightsFile).string(), weights);
  io::write_safetensors((directory / kOptimizerFile).string(), optimizer);
  write_file_atomically(directory / kStateFile, state.to_json().dump(2) + "\n");
}

Snapshot Snapshot::read(const std::filesystem::path& directory) {
  const std::string file = (directory / kStateFile).string();
  return {RunState::from_json(read_json_file(file, 16 << 20), file),
          io::TensorFile((directory / kWeightsFile).string()).tensors(),
          io::TensorFile((directory / kOptimizerFile).string()).tensors()};
}

}  // namespace lathe::train
