// Trains a LoRA update of a plain torch::nn::Linear on y = x Wᵀ: the layer itself stays as it was.
#include <lathe/nn/lora.h>
#include <lathe/optim/adam.h>
#include <torch/torch.h>

#include <cstdio>

int main() {
  torch::manual_seed(0);
  const torch::nn::Linear pretrained(32, 16);
  lathe::nn::LoRALinear layer(pretrained, lathe::nn::LoRALinearOptions(/*rank=*/4, /*alpha=*/8));

  // The target differs from the pretrained map by a matrix of rank 2, so rank 4 can reach it.
  const torch::Tensor difference = torch::randn({16, 2}).mm(torch::randn({2, 32})) * 0.1;
  const torch::Tensor target = (pretrained->weight + difference).detach();

  lathe::optim::AdamW optimizer({{"A", layer->lora_A->weight}, {"B", layer->lora_B->weight}});
  float loss_value = 0;
  for (int step = 0; step < 300; ++step) {
    const torch::Tensor x = torch::randn({64, 32});
    const torch::Tensor y = x.mm(target.t()) + pretrained->bias;
    const torch::Tensor loss = torch::mse_loss(layer->forward(x), y);
    optimizer.zero_grad();
    loss.backward();
    optimizer.step(/*lr=*/1e-2);
    loss_value = loss.item<float>();
  }
  layer->merge();  // the update now sits in the layer's own weight
  std::printf("loss %.6f, weight error %.4f\n", loss_value,
              (layer->base_layer->dense_weight() - target).abs().max().item<float>());
  return loss_value < 1e-4 ? 0 : 1;
}
