#include "collapse.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <atomic>
#include <cmath>
#include <exception>
#include <functional>
#include <thread>
#include <utility>

#include "lathe/base/random.h"
#include "lathe/nn/counter_tensors.h"
#include "lathe/nn/moe.h"
#include "lathe/optim/adam.h"

namespace lathe::app {
namespace {

using at::Tensor;

constexpr int64_t kWidth = 16, kHidden = 32, kSnapshotEvery = 25;
constexpr double kLearningRate = 3e-3, kCentreScale = 1.3, kSpread = 0.5;
const double kOffset = 3 * std::sqrt(static_cast<double>(kWidth));

struct Batch {
  Tensor x, y, cluster;
};

// The task of one seed: centres, maps, and the constant that all inputs share.
struct Task {
  uint64_t seed;
  Tensor centres, maps, offset;

  explicit Task(uint64_t seed_)
      : seed(seed_),
        centres(normal({kCollapseClusters, kWidth}, "centres") * kCentreScale),
        maps(normal({kCollapseClusters, kWidth, kWidth}, "maps") / std::sqrt(static_cast<double>(kWidth))),
        offset(normal({kWidth}, "offset")) {
    offset = offset / offset.norm() * kOffset;
  }

  Tensor normal(at::IntArrayRef shape, const char* purpose) const {
    return nn::counter_normal(shape, make_key(seed, name_key(purpose))).to(at::kFloat);
  }

  Batch draw(int64_t size, uint64_t index) const {
    const uint64_t key = make_key(seed, name_key("batch"), index);
    Batch batch;
    batch.cluster = (nn::counter_uniform({size}, make_key(key, 1)) * kCollapseClusters).to(at::kLong);
    const Tensor spread = nn::counter_normal({size, kWidth}, make_key(key, 2)).to(at::kFloat) * kSpread;
    const Tensor inner = centres.index_select(0, batch.cluster) + spread;
    batch.y = at::bmm(maps.index_select(0, batch.cluster), inner.unsqueeze(2)).squeeze(2);
    batch.x = inner + offset;
    return batch;
  }
};

// A router whose logits see something else than its experts do.
class PreparedRouter : public nn::RouterBase {
 public:
  using Prepare = std::function<Tensor(const Tensor&)>;
  PreparedRouter(std::shared_ptr<nn::RouterBase> inner, Prepare prepare)
      : nn::RouterBase("PreparedRouter", inner->in_features(), inner->num_experts(), inner->top_k()),
        inner_(register_module("inner", std::move(inner))),
        prepare_(std::move(prepare)) {}
  nn::Routing route(const Tensor& x_TD, nn::RouterPass pass) override { return inner_->route(prepare_(x_TD), pass); }
  void initialise(uint64_t key, double std) override { inner_->initialise(key, std); }
  Tensor selection_bias() const override { return inner_->selection_bias(); }

 private:
  std::shared_ptr<nn::RouterBase> inner_;
  Prepare prepare_;
};

std::shared_ptr<nn::RouterBase> make_router(const CollapseCase& which, const Task& task) {
  using Kind = CollapseCase::Router;
  using Score = nn::TopKRouterOptions::Score;
  const int64_t top_k = which.top_k;
  switch (which.router) {
    case Kind::Noisy:
      return nn::NoisyTopKRouter(kWidth, kCollapseExperts, top_k, /*renormalise=*/top_k > 1).ptr();
    case Kind::ExpertChoice:
      return nn::ExpertChoiceRouter(kWidth, kCollapseExperts, static_cast<double>(top_k)).ptr();
    case Kind::Random:
      return nn::RandomRouter(kWidth, kCollapseExperts, top_k).ptr();
    case Kind::Softmax:
    case Kind::Sigmoid:
      break;
  }
  nn::TopKRouterOptions options;
  options.score(which.router == Kind::Sigmoid ? Score::Sigmoid : Score::Softmax)
      .renormalise(top_k > 1)
      .jitter(which.jitter)
      .selection_bias(which.bias_rate > 0);
  auto router = nn::TopKRouter(kWidth, kCollapseExperts, top_k, options).ptr();
  switch (which.input) {
    case CollapseCase::RouterInput::WithoutOffset:
      return std::make_shared<PreparedRouter>(router, [offset = task.offset](const Tensor& x) { return x - offset; });
    case CollapseCase::RouterInput::LayerNorm:
      return std::make_shared<PreparedRouter>(router, [](const Tensor& x) { return at::layer_norm(x, {kWidth}); });
    case CollapseCase::RouterInput::AsIs:
      break;
  }
  return router;
}

// I(expert; cluster) / ln E from the joint counts of assignments.
double mutual_information(const nn::Routing& routing, const Tensor& cluster) {
  const Tensor cell = routing.expert_A * kCollapseClusters + cluster.index_select(0, routing.token_A);
  const Tensor joint = at::bincount(cell, {}, kCollapseExperts * kCollapseClusters)
                           .to(at::kDouble)
                           .view({kCollapseExperts, kCollapseClusters});
  const Tensor p = joint / joint.sum(), independent = p.sum(1, true) * p.sum(0, true);
  const Tensor terms = at::where(p > 0, p * (p / independent).log(), at::zeros_like(p));
  return terms.sum().item<double>() / std::log(static_cast<double>(kCollapseExperts));
}

double relative_error(const Tensor& y, const Batch& batch) {
  const at::NoGradGuard no_grad;
  return ((y - batch.y).square().mean() / (batch.y - batch.y.mean(0)).square().mean()).item<double>();
}

CollapseSnapshot snapshot_of(int64_t step, double loss, nn::MoELayerImpl& layer, const Batch& batch) {
  const at::NoGradGuard no_grad;
  const nn::LoadFigures figures = nn::load_figures(layer.last());
  const Tensor load = layer.last().load_E / layer.last().load_E.sum();
  const double* shares = load.const_data_ptr<double>();
  return {.step = step,
          .loss = loss,
          .entropy = figures.entropy,
          .max_vio = figures.max_vio,
          .information = mutual_information(layer.router->route(batch.x, {}), batch.cluster),
          .dropped = figures.dropped,
          .unserved = figures.unserved,
          .dead = figures.num_dead,
          .load = {shares, shares + kCollapseExperts}};
}

nn::MoELayer make_layer(const CollapseCase& which, const Task& task) {
  nn::MoELayerOptions options;
  options.capacity_factor(which.capacity).eval_capacity_factor(which.capacity);
  nn::ExpertBank bank(
      nn::ExpertBankOptions(kCollapseExperts, kWidth, kHidden).activation(nn::ExpertActivation::Gelu).bias(true));
  nn::MoELayer layer(make_router(which, task), bank.ptr(), options);
  layer->router->initialise(make_key(task.seed, name_key("router")), which.router_std);
  bank->initialise(make_key(task.seed, name_key("experts")));
  return layer;
}

nn::BalanceOptions balance_of(const CollapseCase& which) {
  return {.aux_loss_weight = which.aux,
          .z_loss_weight = which.z,
          .importance_loss_weight = which.importance,
          .load_loss_weight = which.load,
          .bias_update_rate = which.bias_rate};
}

}  // namespace

CollapseRun run_collapse(const CollapseCase& which, uint64_t seed) {
  const Task task(seed);
  nn::MoELayer layer = make_layer(which, task);
  std::vector<optim::Trained> trained;
  for (const auto& item : layer->named_parameters()) trained.push_back({item.key(), item.value().requires_grad_(true)});
  optim::Adam optimizer(trained);
  CollapseRun run;
  for (int64_t step = 0; step < kCollapseSteps; ++step) {
    if (step == (which.from_half_way ? kCollapseSteps / 2 : 0)) layer->options.balance(balance_of(which));
    const Batch batch = task.draw(kCollapseTokens, static_cast<uint64_t>(step));
    const nn::Pass pass{.training = true, .key = make_key(seed, name_key("pass"), step)};
    const Tensor y = layer->forward(batch.x, pass);
    ((y - batch.y).square().mean() + layer->window_loss()).backward();
    optimizer.step(kLearningRate);
    optimizer.zero_grad();
    if (step % kSnapshotEvery == 0) run.history.push_back(snapshot_of(step, relative_error(y, batch), *layer, batch));
    layer->end_window();
  }
  const at::NoGradGuard no_grad;
  const Batch fresh = task.draw(kCollapseTestTokens, kCollapseSteps);
  // A key of its own: the random router draws at all times.
  const Tensor y = layer->forward(fresh.x, {.key = make_key(seed, name_key("test"))});
  run.final = snapshot_of(kCollapseSteps, relative_error(y, fresh), *layer, fresh);
  run.history.push_back(run.final);
  return run;
}

std::vector<CollapseCase> collapse_cases() {
  using Router = CollapseCase::Router;
  using Input = CollapseCase::RouterInput;
  using Role = CollapseCase::Role;
  return {
      {.name = "nothing"},
      {.name = "z-loss 0.001 alone", .z = 1e-3},
      {.name = "input jitter 0.01 alone", .jitter = 0.01},
      {.name = "router starts at zero", .router_std = 0},
      {.name = "LayerNorm before the router", .input = Input::LayerNorm},
      {.name = "offset hidden from the router", .role = Role::Cause, .input = Input::WithoutOffset},
      {.name = "auxiliary loss 0.01", .role = Role::TooWeak, .aux = 0.01},
      {.name = "auxiliary loss 0.1", .role = Role::Cure, .aux = 0.1},
      {.name = "auxiliary loss 1", .role = Role::Cure, .aux = 1},
      {.name = "bias 0.001", .role = Role::Shown, .bias_rate = 1e-3},
      {.name = "bias 0.01", .role = Role::Cure, .bias_rate = kCollapseBiasRate},
      {.name = "bias 0.003 on sigmoids", .role = Role::Shown, .router = Router::Sigmoid, .bias_rate = 3e-3},
      {.name = "expert choice", .role = Role::Cure, .router = Router::ExpertChoice},
      {.name = "capacity 1.25 alone", .role = Role::Shown, .capacity = 1.25},
      {.name = "random routing", .role = Role::Control, .router = Router::Random},
      {.name = "auxiliary loss 0.1 from half-way", .role = Role::Cure, .aux = 0.1, .from_half_way = true},
      {.name = "top-2: nothing", .top_k = 2},
      {.name = "top-2: auxiliary loss 0.1", .role = Role::Cure, .top_k = 2, .aux = 0.1},
      {.name = "top-2: noisy, importance and load 0.1",
       .role = Role::Cure,
       .router = Router::Noisy,
       .top_k = 2,
       .importance = 0.1,
       .load = 0.1},
      {.name = "top-2: random routing", .role = Role::Control, .router = Router::Random, .top_k = 2},
  };
}

std::vector<std::vector<CollapseRun>> run_laboratory(const std::vector<CollapseCase>& cases, int64_t num_seeds) {
  std::vector<std::vector<CollapseRun>> runs(cases.size(), std::vector<CollapseRun>(static_cast<size_t>(num_seeds)));
  const size_t num_runs = cases.size() * static_cast<size_t>(num_seeds);
  std::atomic<size_t> next{0};
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  const auto work = [&] {
    at::set_num_threads(1);
    try {
      for (size_t i = next++; i < num_runs && !failed; i = next++) {
        const size_t seed = i % static_cast<size_t>(num_seeds);
        runs[i / static_cast<size_t>(num_seeds)][seed] = run_collapse(cases[i / static_cast<size_t>(num_seeds)], seed);
      }
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  };
  std::vector<std::thread> workers;
  for (int worker = at::get_num_threads(); worker > 0; --worker) workers.emplace_back(work);
  for (std::thread& worker : workers) worker.join();
  if (failure) std::rethrow_exception(failure);
  return runs;
}

}  // namespace lathe::app
