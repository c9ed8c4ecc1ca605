#include <cmath>
#include <memory>
#include <utility>

#include "lathe/optim/adam.h"
#include "practice/lora.h"
#include "practice/lora_defects.h"

namespace lathe::app::practice {
namespace {

constexpr int64_t kTrainSamples = 256;
constexpr double kStepRate = 1e-3, kTrainRate = 1e-2;

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
  const std::string name = "4b." + std::to_string(which.draw);
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

}  // namespace

LoraUnderTest build(const LoraCase& which) { return build_over(base_weight(which.width), which); }

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

int64_t trainable_parameters(const LoraCase& which) {
  int64_t count = 0;
  for (const auto& [name, parameter] : build(which).trained) count += parameter.numel();
  return count;
}

LoraTraining train_lora(const LoraCase& which, int64_t num_steps) {
  const LoraUnderTest layer = build(which);
  const Tensor before = layer.base_weight.detach().clone(), x = drawn({kTrainSamples, which.width}, "4b.train");
  const Tensor change = drawn({kLoraOutputs, 2}, "4b.left").matmul(drawn({2, which.width}, "4b.right")) /
                        static_cast<double>(which.width);
  const Tensor target = x.matmul((before + change).t());
  optim::Adam optimizer(adam_parameters(layer));
  LoraTraining training;
  for (int64_t step = 0; step < num_steps; ++step) {
    const Tensor loss = (layer.forward(x) - target).square().mean();
    training.losses.push_back(loss.item<double>());
    loss.backward();
    optimizer.step(kTrainRate);
    optimizer.zero_grad();
  }
  training.base_moved = !same_bits(layer.base_weight, before);
  return training;
}

}  // namespace lathe::app::practice
