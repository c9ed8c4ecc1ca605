// A Mixer of a model directory in timm's form, trained on one batch: writes what tests/interop/mixer.py compares with
// timm, and prints one JSON line with the own CPU and wall seconds of each step.
//   mixer_step MODEL BATCH.safetensors OUT_DIRECTORY STEPS [none | elementwise | full] [float32 | bfloat16]
// BATCH holds pixel_values [N, C, H, W] float32 and labels [N] int64.
#include <ATen/Parallel.h>

#include <chrono>
#include <cstdio>
#include <string>

#include "bench/hold_to_avx2.h"
#include "lathe/base/clock_meter.h"
#include "lathe/base/files.h"
#include "lathe/base/memory.h"
#include "lathe/io/tensors.h"
#include "lathe/models/image_classifier.h"
#include "lathe/models/load.h"
#include "lathe/nn/modules.h"
#include "lathe/optim/adam.h"
#include "lathe/train/memory_meter.h"

namespace {

using namespace lathe;

struct Batch {
  at::Tensor pixels, labels;
};

struct Trainee {
  std::shared_ptr<models::ImageClassifier> model;
  arch::ModelConfig config;
  nn::Pass pass;

  at::Tensor loss(const Batch& batch) {
    const at::Tensor logits = model->forward(batch.pixels, pass);
    return nn::cross_entropy_sum(logits, batch.labels) / static_cast<double>(batch.labels.size(0));
  }
};

Trainee open(const std::string& directory, const std::string& policy, const std::string& dtype) {
  const auto files = formats::ModelDirectory::open(directory);
  Trainee trainee{nullptr, arch::read_model_config(files.config_path()), {}};
  const int64_t num_labels = files.find("head.weight")->info.shape[0];
  trainee.model = models::build_image_classifier(trainee.config.arch, num_labels);
  for (at::Tensor& parameter : trainee.model->parameters()) parameter.requires_grad_(true);
  const at::ScalarType type = dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  models::load_weights(*trainee.model, arch::match_checkpoint(files, trainee.config.arch, num_labels), 0, {type, type},
                       /*round_trained=*/true);
  trainee.pass.training = true;
  trainee.pass.layers.recompute = policy == "elementwise" ? nn::Recompute::Elementwise
                                  : policy == "full"      ? nn::Recompute::Full
                                                          : nn::Recompute::None;
  return trainee;
}

void write_results(Trainee& trainee, const Batch& batch, const std::string& directory) {
  io::NamedTensors model, results;
  results.emplace_back("logits", trainee.model->forward(batch.pixels, {}).detach());
  trainee.loss(batch).backward();
  for (auto& item : trainee.model->named_parameters()) {
    model.emplace_back(item.key(), item.value().detach().clone());
    results.emplace_back("grad." + item.key(), item.value().grad().clone());
    item.value().mutable_grad().reset();
  }
  io::write_safetensors(directory + "/results.safetensors", results);
  io::write_safetensors(directory + "/model.safetensors", model);
  const auto labels = std::vector<std::string>(static_cast<size_t>(results[0].second.size(1)), "x");
  write_file_atomically(
      directory + "/config.json",
      arch::timm_config(std::get<arch::MixerArch>(trainee.config.arch), *trainee.config.image, labels).dump(2));
}

double own_cpu_seconds() { return lathe::ClockMeter::seconds(CLOCK_PROCESS_CPUTIME_ID); }

void run_steps(Trainee& trainee, const Batch& batch, int steps) {
  optim::NamedTensors parameters;
  for (auto& item : trainee.model->named_parameters()) parameters.emplace_back(item.key(), item.value());
  optim::AdamW optimizer(optim::with_weight_decay(parameters, 0), {});
  std::string cpu, wall, losses;
  for (int step = 0; step < steps; ++step) {
    const double before = own_cpu_seconds();
    const auto start = std::chrono::steady_clock::now();
    const at::Tensor loss = trainee.loss(batch);
    loss.backward();
    optimizer.step(1e-4);
    optimizer.zero_grad();
    const char* comma = step == 0 ? "" : ", ";
    cpu += comma + std::to_string(own_cpu_seconds() - before);
    wall += comma + std::to_string(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    losses += comma + std::to_string(loss.item<double>());
  }
  std::printf("{\"cpu_s\": [%s], \"wall_s\": [%s], \"losses\": [%s], \"peak_rss_mib\": %ld, \"threads\": %d}\n",
              cpu.c_str(), wall.c_str(), losses.c_str(), lathe::peak_resident_memory_bytes() >> 20,
              at::get_num_threads());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  bench::hold_to_avx2_if_asked();
  train::MemoryMeter::install();  // the allocator of the driver
  const io::TensorFile file(argv[2]);
  const Batch batch{file.tensor("pixel_values"), file.tensor("labels")};
  Trainee trainee = open(argv[1], argc > 5 ? argv[5] : "none", argc > 6 ? argv[6] : "float32");
  if (std::string(argv[3]) != "-") write_results(trainee, batch, argv[3]);
  run_steps(trainee, batch, std::stoi(argv[4]));
  return 0;
}
