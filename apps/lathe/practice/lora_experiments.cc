#include <ATen/ops/zeros.h>

#include <cmath>
#include <memory>
#include <utility>

#include "lathe/base/random.h"
#include "lathe/nn/counter_tensors.h"
#include "lathe/optim/adam.h"
#include "practice/lora.h"
#include "practice/lora_defects.h"

namespace lathe::app::practice {
namespace {

constexpr int64_t kTrainSamples = 256;
constexpr double kStepRate = 1e-3, kTrainRate = 1e-2;

std::string draw_name(const LoraCase& which) { return "4b." + std::to_string(which.draw); }

std::vector<optim::Trained> adam_parameters(const LoraUnderTest& layer) {
  return optim::with_weight_decay(layer.trained, 0);
}

void keep_trained(LoraUnderTest& layer, const torch::nn::Module& module) {
  for (const auto& item : module.named_parameters()) {
    if (item.value().requires_grad()) layer.trained.emplace_back(item.key(), item.value());
  }
}

LoraUnderTest build_over(const Tensor& base_weight, const LoraCase& which) {
  torch::nn::Linear base(torch::nn::LinearOptions(which.width, kLoraOutputs).bias(false));
  base->weight.set_data(base_weight);
  LoraUnderTest layer{.base_weight = base->weight};
  const std::string name = draw_name(which);
  if (which.library) {
    const nn::Linear dense(base);
    const auto lora = make_lora(dense.ptr(), nn::LoRALinearOptions(which.rank, which.alpha), (name + ".A").c_str());
    layer.forward = [lora](const Tensor& x) { return nn::LoRALinear(lora)->forward(x); };
    layer.base_forward = [dense](const Tensor& x) { return nn::Linear(dense)->forward(x); };
    keep_trained(layer, *lora);
  } else {
    const auto lora = std::make_shared<ExamLoRA>(base, which.rank, which.alpha, which.defects, name);
    layer.forward = [lora](const Tensor& x) { return lora->forward(x); };
    layer.base_forward = [base](const Tensor& x) { return torch::nn::Linear(base)->forward(x); };
    keep_trained(layer, *lora);
  }
  return layer;
}

Tensor base_weight(int64_t width) { return make_linear(width, kLoraOutputs, "4b.base")->weight.detach(); }

// A [rank, in], as the defect has it drawn.
Tensor reference_a(const LoraCase& which) {
  const std::string name = draw_name(which) + ".A";
  if (which.defects.constant_scale) return 0.02 * drawn({which.width, which.rank}, name.c_str(), at::kDouble).t();
  const std::vector<int64_t> shape =
      which.library ? std::vector<int64_t>{which.rank, which.width} : std::vector<int64_t>{which.width, which.rank};
  const Tensor unit =
      nn::counter_uniform(shape, make_key(name_key("practice"), name_key(name))).to(at::kDouble) * 2 - 1;
  return (which.library ? unit : unit.t()) / std::sqrt(static_cast<double>(which.width));
}

ReferenceLayer reference_over(const Tensor& weight, const LoraCase& which) {
  const Tensor b = which.defects.random_b
                       ? 0.02 * drawn({which.rank, kLoraOutputs}, (draw_name(which) + ".B").c_str(), at::kDouble).t()
                       : at::zeros({kLoraOutputs, which.rank}, at::kDouble);
  return {.w = weight.to(at::kDouble),
          .a = reference_a(which),
          .b = b,
          .scaling = which.defects.unscaled ? 1 : which.alpha / static_cast<double>(which.rank),
          .trains_base = which.defects.trains_base};
}

// What the layers learn: W and a change of rank 2.
struct TrainingData {
  Tensor x, target;

  TrainingData(const Tensor& weight, int64_t width) : x(drawn({kTrainSamples, width}, "4b.train")) {
    const Tensor change =
        drawn({kLoraOutputs, 2}, "4b.left").matmul(drawn({2, width}, "4b.right")) / static_cast<double>(width);
    target = x.matmul((weight + change).t());
  }
};

}  // namespace

LoraUnderTest build(const LoraCase& which) { return build_over(base_weight(which.width), which); }
ReferenceLayer reference_of(const LoraCase& which) { return reference_over(base_weight(which.width), which); }

double shift_at_start(const LoraCase& which) {
  const Tensor x = drawn({kShiftSamples, which.width}, "4b.x");
  double squares = 0;
  LoraCase drawn_again = which;
  for (drawn_again.draw = 0; drawn_again.draw < kShiftDraws; ++drawn_again.draw) {
    const LoraUnderTest layer = build(drawn_again);
    squares += std::pow(relative_difference(layer.forward(x), layer.base_forward(x)), 2);
  }
  return std::sqrt(squares / static_cast<double>(kShiftDraws));
}

double reference_shift(const LoraCase& which) {
  const Tensor x = drawn({kShiftSamples, which.width}, "4b.x").to(at::kDouble);
  double squares = 0;
  LoraCase drawn_again = which;
  for (drawn_again.draw = 0; drawn_again.draw < kShiftDraws; ++drawn_again.draw) {
    const ReferenceLayer layer = reference_of(drawn_again);
    squares += std::pow(relative_difference(layer.forward(x), x.matmul(layer.w.t())), 2);
  }
  return std::sqrt(squares / static_cast<double>(kShiftDraws));
}

double first_step_change(const LoraCase& which) {
  const Tensor x = drawn({kStepSamples, which.width}, "4b.single"), g = drawn({kStepSamples, kLoraOutputs}, "4b.g");
  const Tensor weight = base_weight(which.width);
  double sum = 0;
  for (int64_t i = 0; i < kStepSamples; ++i) {
    LoraCase drawn_again = which;
    drawn_again.draw = i;
    const LoraUnderTest layer = build_over(weight.clone(), drawn_again);
    optim::Adam optimizer(adam_parameters(layer));
    const Tensor sample = x.narrow(0, i, 1), before = layer.forward(sample);
    before.backward(g.narrow(0, i, 1));
    optimizer.step(kStepRate);
    sum += (layer.forward(sample) - before).norm().item<double>();
  }
  return sum / static_cast<double>(kStepSamples);
}

double reference_step_change(const LoraCase& which) {
  const Tensor x = drawn({kStepSamples, which.width}, "4b.single").to(at::kDouble),
               g = drawn({kStepSamples, kLoraOutputs}, "4b.g").to(at::kDouble);
  const Tensor weight = base_weight(which.width);
  double sum = 0;
  for (int64_t i = 0; i < kStepSamples; ++i) {
    LoraCase drawn_again = which;
    drawn_again.draw = i;
    ReferenceLayer layer = reference_over(weight, drawn_again);
    const Tensor sample = x.narrow(0, i, 1), before = layer.forward(sample);
    layer.step(sample, g.narrow(0, i, 1), kStepRate);
    sum += (layer.forward(sample) - before).norm().item<double>();
  }
  return sum / static_cast<double>(kStepSamples);
}

int64_t trainable_parameters(const LoraCase& which) {
  int64_t count = 0;
  for (const auto& [name, parameter] : build(which).trained) count += parameter.numel();
  return count;
}

LoraTraining train_lora(const LoraCase& which, int64_t num_steps) {
  const LoraUnderTest layer = build(which);
  const Tensor before = layer.base_weight.detach().clone();
  const TrainingData data(before, which.width);
  optim::Adam optimizer(adam_parameters(layer));
  LoraTraining training;
  for (int64_t step = 0; step < num_steps; ++step) {
    const Tensor loss = (layer.forward(data.x) - data.target).square().mean();
    training.losses.push_back(loss.item<double>());
    loss.backward();
    optimizer.step(kTrainRate);
    optimizer.zero_grad();
  }
  training.base_moved = !same_bits(layer.base_weight, before);
  return training;
}

std::vector<double> reference_losses(const LoraCase& which) {
  const Tensor weight = base_weight(which.width);
  ReferenceLayer layer = reference_over(weight, which);
  const TrainingData data(weight, which.width);
  return train_reference(layer, data.x.to(at::kDouble), mean_square_to(data.target.to(at::kDouble)), kTrainRate,
                         kJudgedStep + 1);
}

}  // namespace lathe::app::practice
