#include "lathe/nn/moe_experts.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <utility>

#include "lathe/base/random.h"
#include "lathe/nn/counter_tensors.h"
#include "lathe/nn/gemm.h"
#include "lathe/nn/linear.h"
#include "lathe/nn/moe_bank.h"

namespace lathe::nn {
namespace {

Tensor uniform_parameter(at::IntArrayRef shape, double bound, uint64_t key) {
  return counter_uniform(shape, key).mul_(2 * bound).sub_(bound).to(at::kFloat);
}

}  // namespace

ExpertBankImpl::ExpertBankImpl(ExpertBankOptions options_) : ExpertBankBase("ExpertBank"), options(options_) {
  const int64_t num_experts = options.num_experts(), width = options.in_features(), hidden = options.hidden_features();
  TORCH_CHECK_VALUE(num_experts >= 1 && width >= 1 && hidden >= 1,
                    "ExpertBank: expected num_experts, in_features and hidden_features >= 1, got ", num_experts, ", ",
                    width, " and ", hidden);
  const bool gated = options.activation() == ExpertActivation::SwiGLU;
  TORCH_CHECK_VALUE(!gated || !options.bias(), "ExpertBank: expected SwiGLU experts without biases");
  up_weight = gated ? register_parameter("gate_up_proj", hollow({num_experts, 2 * hidden, width}))
                    : register_parameter("up_proj", hollow({num_experts, hidden, width}));
  if (options.bias()) up_bias = register_parameter("up_proj_bias", hollow({num_experts, hidden}));
  down_weight = register_parameter("down_proj", hollow({num_experts, width, hidden}));
  if (options.bias()) down_bias = register_parameter("down_proj_bias", hollow({num_experts, width}));
}

void ExpertBankImpl::initialise(uint64_t key) {
  const double up = 1 / std::sqrt(static_cast<double>(options.in_features())),
               down = 1 / std::sqrt(static_cast<double>(options.hidden_features()));
  up_weight.set_data(uniform_parameter(up_weight.sizes(), up, make_key(key, name_key("up"))));
  down_weight.set_data(uniform_parameter(down_weight.sizes(), down, make_key(key, name_key("down"))));
  if (!options.bias()) return;
  up_bias.set_data(uniform_parameter(up_bias.sizes(), up, make_key(key, name_key("up bias"))));
  down_bias.set_data(uniform_parameter(down_bias.sizes(), down, make_key(key, name_key("down bias"))));
}

std::vector<std::string> ExpertBankImpl::projections() const {
  return {options.activation() == ExpertActivation::SwiGLU ? "gate_up_proj" : "up_proj", "down_proj"};
}

bool ExpertBankImpl::is_down(const std::string& projection) const {
  const std::vector<std::string> known = projections();
  TORCH_CHECK_VALUE(projection == known[0] || projection == known[1], "ExpertBank: expected ", known[0], " or ",
                    known[1], ", got ", projection);
  return projection == known[1];
}

std::vector<int64_t> ExpertBankImpl::shape_of(const std::string& projection) const {
  const int64_t hidden = options.hidden_features(), width = options.in_features();
  if (is_down(projection)) return {num_experts(), width, hidden};
  return {num_experts(), (options.activation() == ExpertActivation::SwiGLU ? 2 : 1) * hidden, width};
}

torch::nn::Module& ExpertBankImpl::module_of(int64_t expert, const std::string& projection) {
  const auto child = [this](torch::nn::Module& parent, const std::string& path, const std::string& name) {
    auto& module = modules_[path];
    if (module == nullptr) module = parent.register_module(name, std::make_shared<torch::nn::Module>("ExpertPart"));
    return module;
  };
  const std::string index = std::to_string(expert);
  return *child(*child(*this, index, index), index + "." + projection, projection);
}

void ExpertBankImpl::freeze() {
  for (Tensor& weight : parameters_.values()) weight.requires_grad_(false);
}

void ExpertBankImpl::quantize(const std::string& projection, const NF4LinearOptions& how) {
  const bool down = is_down(projection);
  TORCH_CHECK_VALUE(four_bit_layers(projection).empty(), "ExpertBank: ", projection, " is in four bits already");
  const std::vector<int64_t> shape = shape_of(projection);
  for (int64_t e = 0; e < num_experts(); ++e) {
    NF4Linear layer(shape[2], shape[1], /*bias=*/false, how);
    module_of(e, projection).register_module("base_layer", layer);
    (down ? four_bit_down_ : four_bit_up_).push_back(std::move(layer));
  }
  parameters_.erase(projection);
  (down ? down_weight : up_weight) = Tensor();
}

const std::vector<NF4Linear>& ExpertBankImpl::four_bit_layers(const std::string& projection) const {
  return is_down(projection) ? four_bit_down_ : four_bit_up_;
}

ExpertBankImpl::Update ExpertBankImpl::update_of(const ExpertLoRAOptions& lora, int64_t expert) const {
  TORCH_CHECK_VALUE(lora.rank >= 1, "ExpertBank: expected rank >= 1, got ", lora.rank);
  const int64_t hidden = options.hidden_features(), width = options.in_features();
  const bool gated = options.activation() == ExpertActivation::SwiGLU;
  const ExpertLinearNames names = expert < 0 ? ExpertLinearNames() : options.linear_names();
  Update update;
  update.expert = expert;
  update.options = lora;
  update.of_down = lora.projection == names.down;
  update.num_rows = hidden;
  if (update.of_down) {
    update.num_rows = width;
  } else if (gated && lora.projection == "gate_up_proj") {
    update.num_rows = 2 * hidden;
  } else if (gated && lora.projection == names.up) {
    update.first_row = hidden;
  } else {
    TORCH_CHECK_VALUE(lora.projection == (gated ? names.gate : names.up), "ExpertBank: expected a projection of ",
                      gated ? "gate_up_proj, " + names.gate + ", " : "", names.up, ", ", names.down, ", got ",
                      lora.projection);
  }
  for (const Update& other : updates_) {
    const bool apart = other.of_down != update.of_down || other.first_row + other.num_rows <= update.first_row ||
                       update.first_row + update.num_rows <= other.first_row ||
                       (other.expert >= 0 && expert >= 0 && other.expert != expert);
    TORCH_CHECK_VALUE(apart, "ExpertBank: ", lora.projection, " is adapted already, as ", other.options.projection);
  }
  const int64_t in = update.of_down ? hidden : width, copies = expert < 0 ? num_experts() : 1;
  update.lora_A = Matrix(copies * lora.rank, in);
  update.lora_B = Matrix(update.num_rows, lora.rank * copies);
  return update;
}

void ExpertBankImpl::adapt_expert(int64_t expert, const ExpertLoRAOptions& lora) {
  TORCH_CHECK_VALUE(expert >= 0 && expert < num_experts(), "ExpertBank: expected an expert below ", num_experts(),
                    ", got ", expert);
  Update update = update_of(lora, expert);
  freeze();
  update.path = std::to_string(expert) + "." + lora.projection;
  torch::nn::Module& module = module_of(expert, lora.projection);
  module.register_module("lora_A", update.lora_A);
  module.register_module("lora_B", update.lora_B);
  updates_.push_back(std::move(update));
}

void ExpertBankImpl::adapt_parameters(const std::vector<ExpertLoRAOptions>& loras) {
  torch::nn::Module* module = this;
  std::string path;
  // PEFT wraps the bank once for each parameter, the last one outermost.
  for (size_t i = loras.size(); i-- > 0;) {
    TORCH_CHECK_VALUE(loras[i].dropout == 0, "ExpertBank: expected no dropout for updates of all experts, got ",
                      loras[i].dropout);
    Update update = update_of(loras[i], -1);
    freeze();
    update.path = path;
    module->register_module("lora_A", update.lora_A);
    module->register_module("lora_B", update.lora_B);
    updates_.push_back(std::move(update));
    if (i == 0) break;
    module = module->register_module("base_layer", std::make_shared<torch::nn::Module>("ParameterAdapters")).get();
    path += path.empty() ? "base_layer" : ".base_layer";
  }
}

void ExpertBankImpl::initialise_updates(uint64_t seed, const std::string& path) {
  const at::NoGradGuard no_grad;
  for (const Update& update : updates_) {
    const std::string name = path + (update.path.empty() ? "" : update.path + ".") + "lora_A.weight";
    // kaiming_uniform(a = √5) of [R, in] is U(±1/√in).
    const double bound = 1 / std::sqrt(static_cast<double>(update.lora_A->weight.size(1)));
    update.lora_A->weight.set_data(
        uniform_parameter(update.lora_A->weight.sizes(), bound, make_key(seed, name_key(name))));
    update.lora_B->weight.set_data(at::zeros(update.lora_B->weight.sizes(), at::kFloat));
  }
}

Tensor ExpertBankImpl::Update::of_expert(int64_t index, int64_t num_experts) const {
  const at::NoGradGuard no_grad;
  Tensor A = lora_A->weight, B = lora_B->weight;
  if (expert < 0) {
    A = A.narrow(0, index * options.rank, options.rank);
    B = B.view({num_rows, options.rank, num_experts}).select(2, index).contiguous();
  }
  return gemm(B, A).mul_(options.scaling);
}

Tensor ExpertBankImpl::with_updates(const std::string& projection, double factor) const {
  const at::NoGradGuard no_grad;
  const bool down = is_down(projection);
  const std::vector<NF4Linear>& layers = four_bit_layers(projection);
  Tensor sum = layers.empty() ? (down ? down_weight : up_weight).detach() : Tensor();
  if (!layers.empty()) {
    sum = at::empty(shape_of(projection), at::kFloat);
    for (int64_t e = 0; e < num_experts(); ++e)
      layers[static_cast<size_t>(e)]->decode(0, sum.size(1), sum.select(0, e));
  }
  const at::ScalarType type = sum.scalar_type();
  bool own = !layers.empty();
  for (const Update& update : updates_) {
    if (update.of_down != down || factor == 0) continue;
    if (!std::exchange(own, true)) sum = sum.to(update.lora_A->weight.scalar_type(), false, /*copy=*/true);
    for (int64_t e = 0; e < num_experts(); ++e) {
      if (update.expert < 0 || update.expert == e)
        sum.select(0, e).narrow(0, update.first_row, update.num_rows).add_(update.of_expert(e, num_experts()), factor);
    }
  }
  return sum.to(type);
}

Tensor ExpertBankImpl::dense_weight(const std::string& projection) const {
  return with_updates(projection, active() ? 1 : 0);
}

void ExpertBankImpl::add_to_weights(double factor) {
  TORCH_CHECK_VALUE(four_bit_up_.empty() && four_bit_down_.empty(),
                    "ExpertBank: expected dense weights to merge into, got four bits");
  const std::vector<std::string> names = projections();
  up_weight.set_data(with_updates(names[0], factor));
  down_weight.set_data(with_updates(names[1], factor));
}

void ExpertBankImpl::merge() {
  TORCH_CHECK_VALUE(!merged_, "ExpertBank: expected unmerged updates, got merged ones");
  add_to_weights(1);
  merged_ = true;
}

void ExpertBankImpl::unmerge() {
  TORCH_CHECK_VALUE(merged_, "ExpertBank: expected merged updates, got unmerged ones");
  add_to_weights(-1);
  merged_ = false;
}

void ExpertBankImpl::add_updates(BankPass& pass, std::vector<Tensor>& tensors) const {
  pass.updates.resize(static_cast<size_t>(num_experts()));
  if (!active()) return;
  for (const Update& update : updates_) {
    BankUpdate part;
    part.of_down = update.of_down;
    part.first_row = update.first_row;
    part.num_rows = update.num_rows;
    part.rank = update.options.rank;
    part.scaling = update.options.scaling;
    part.of_all = update.expert < 0;
    if (is_training() && update.options.dropout > 0)
      part.dropout = {DropoutStream::next_key(), static_cast<float>(update.options.dropout)};
    part.A = tensors.size();
    part.B = tensors.size() + 1;
    tensors.insert(tensors.end(), {update.lora_A->weight, update.lora_B->weight});
    if (part.of_all) {
      for (auto& of_expert : pass.updates) of_expert.push_back(part);
    } else {
      pass.updates[static_cast<size_t>(update.expert)].push_back(part);
    }
  }
}

Tensor ExpertBankImpl::forward(const Tensor& x_TD, const Routing& routing, kernels::Dropout dropout) {
  TORCH_CHECK_VALUE(x_TD.dim() == 2 && x_TD.size(1) == options.in_features(),
                    "ExpertBank: expected x [T, in_features = ", options.in_features(), "], got ", x_TD.sizes());
  TORCH_CHECK_VALUE(routing.num_tokens == x_TD.size(0) && routing.num_experts == options.num_experts(),
                    "ExpertBank: expected a routing of ", x_TD.size(0), " tokens to ", options.num_experts(),
                    " experts, got one of ", routing.num_tokens, " to ", routing.num_experts);
  auto pass = c10::make_intrusive<BankPass>();
  pass->groups = ExpertGroups::of(routing);
  pass->activation = {options.activation(), dropout};
  pass->num_experts = options.num_experts();
  pass->hidden = options.hidden_features();
  pass->up_rows = (options.activation() == ExpertActivation::SwiGLU ? 2 : 1) * pass->hidden;
  for (const NF4Linear& layer : four_bit_up_) pass->frozen_up.push_back(layer.ptr());
  for (const NF4Linear& layer : four_bit_down_) pass->frozen_down.push_back(layer.ptr());
  std::vector<Tensor> tensors = {x_TD, routing.gate_A, up_weight, down_weight};
  for (Tensor& tensor : tensors) {
    if (!tensor.defined()) tensor = at::empty({0}, x_TD.options());
  }
  const auto append = [&tensors](const Tensor& tensor) {
    tensors.push_back(tensor);
    return tensors.size() - 1;
  };
  if (options.bias()) {
    pass->up_bias = static_cast<int>(append(up_bias));
    pass->down_bias = static_cast<int>(append(down_bias));
  }
  add_updates(*pass, tensors);
  return run_bank(tensors, pass);
}

std::vector<std::pair<std::string, std::shared_ptr<ExpertBankImpl>>> expert_banks(const torch::nn::Module& root) {
  std::vector<std::pair<std::string, std::shared_ptr<ExpertBankImpl>>> banks;
  for (const auto& item : root.named_modules("", /*include_self=*/false)) {
    if (auto bank = std::dynamic_pointer_cast<ExpertBankImpl>(item.value())) banks.emplace_back(item.key(), bank);
  }
  return banks;
}

}  // namespace lathe::nn
