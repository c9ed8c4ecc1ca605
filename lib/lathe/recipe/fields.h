#pragma once

#include "lathe/recipe/recipe.h"

/// The keys of a recipe, each once, in order: what Reader, Writer and SchemaPrinter walk.
namespace lathe::recipe {

using config::above;
using config::above_up_to;
using config::at_least;
using config::between;
using config::Need;
using config::within;

template <typename V>
void Moe::visit(V& v) {
  v.field("num_experts", num_experts,
          {"experts per layer; absent: 8, or the checkpoint's", Need::Optional, at_least(1)});
  v.field("top_k", top_k, {"experts per token; absent: 2, or the checkpoint's", Need::Optional, at_least(1)});
  v.field("router", router, {"how experts are chosen; absent: softmax"});
  v.field("renormalise", renormalise, {"whether the chosen experts' weights sum to 1; absent: true"});
  v.field("capacity_factor", capacity_factor,
          {"tokens per expert over the even share; 0: no limit", Need::Optional, at_least(0)});
  v.field(
      "shared_experts", shared_experts,
      {"experts that every token sees beside its own; absent: 0, or the checkpoint's", Need::Optional, at_least(0)});
  v.field("aux_loss_weight", aux_loss_weight,
          {"weight of the balance loss; absent: 0.01", Need::Optional, at_least(0)});
  v.field("z_loss_weight", z_loss_weight, {"weight of the router's z-loss", Need::Optional, at_least(0)});
  v.field("bias_update_rate", bias_update_rate, {"step of the loss-free balance; 0: off", Need::Optional, at_least(0)});
  v.field("jitter", jitter, {"multiplicative noise on the router's input", Need::Optional, within(0, 1)});
}

template <typename V>
void Model::visit(V& v) {
  v.field("path", path,
          {"a Hugging Face model directory, or hf:org/name in the local cache; required unless init is random"});
  v.field("task", task, {"what the model is trained for", Need::Required});
  v.field("init", init, {"where the weights come from"});
  v.field("arch", arch, {"with init random: a config.json in YAML"});
  v.field("moe", moe, {"mixture of experts"});
  v.field("dtype", dtype, {"storage of frozen weights; auto: as stored"});
  v.field("compute", compute, {"type of the products; auto: float32 when storage is"});
  v.field("dropout", dropout, {"overrides every dropout of config.json", Need::Optional, within(0, 1)});
  v.field("max_length", max_length,
          {"tokens per sample, special ones included; absent: what model and tokenizer allow", Need::Optional,
           at_least(3)});
}

template <typename V>
void Adapter::visit(V& v) {
  v.field("type", type, {"what is trained; none: every weight", Need::Required});
  v.field("rank", rank, {"rows of A; required without from", Need::Optional, between(1, kMaxRank)});
  v.field("alpha", alpha,
          {"numerator of the scaling; required without from", Need::Optional, above_up_to(0, kMaxAlpha)});
  v.field("scaling", scaling, {"standard: alpha / rank; rslora: alpha / sqrt(rank)"});
  v.field("dropout", dropout, {"on the input of A", Need::Optional, within(0, 1)});
  v.field("target_modules", target_modules, {"layers to adapt; absent: the family's usual ones"});
  v.field("exclude_modules", exclude_modules, {"layers not to adapt"});
  v.field("modules_to_save", modules_to_save, {"modules trained and saved whole, besides the head"});
  v.field("rank_pattern", rank_pattern, {"rank by regular expression"});
  v.field("alpha_pattern", alpha_pattern, {"alpha by regular expression"});
  v.field("init", init, {"how A and B start"});
  v.field("from", from, {"a PEFT adapter to start from; its file gives rank, alpha, targets and patterns"});
}

template <typename V>
void Quant::visit(V& v) {
  v.field("type", type, {"four-bit storage of frozen weights"});
  v.field("blocksize", blocksize, {"weights per scale", Need::Optional, at_least(1)});
  v.field("double_quant", double_quant, {"quantise the scales too"});
  v.field("skip_modules", skip_modules, {"layers to leave dense"});
}

template <typename V>
void Image::visit(V& v) {
  v.field("size", size, {"pixels the model sees: only what its shape says"});
  v.field("resize", resize, {"filter; absent: the checkpoint's"});
  v.field("mean", mean, {"subtracted per channel, of samples in [0, 1]; absent: the checkpoint's, else 0.5"});
  v.field("std", std, {"divided by per channel; absent: the checkpoint's, else 0.5"});
  v.field("augment", augment, {"random changes in training: mirrored, a random window, mixed with another"});
  v.field("mixup_alpha", mixup_alpha, {"mixup: weights are drawn from Beta(a, a)", Need::Optional, above(0)});
}

template <typename V>
void Data::visit(V& v) {
  v.field("train", train, {"training files", Need::Required});
  v.field("eval", eval, {"evaluation files"});
  v.field("eval_fraction", eval_fraction,
          {"share of train held out by content; not together with eval", Need::Optional, within(0, 1)});
  v.field("format", format, {"what the files hold; auto: by their fields"});
  v.field("fields", fields, {"names of the fields in the files"});
  v.field("labels", labels, {"label names in order; absent: those of the training data, sorted"});
  v.field("label_smoothing", label_smoothing,
          {"share of the target spread over all labels", Need::Optional, within(0, 1)});
  v.field("train_on", train_on, {"which tokens are labelled"});
  v.field("packing", packing, {"several samples in one row"});
  v.field("shuffle", shuffle, {"a new order each epoch, from the seed"});
  v.field("truncation", truncation, {"which end of a long sample is cut; drop: the sample is left out"});
  v.field("image", image, {"image preprocessing"});
  v.field("num_workers", num_workers,
          {"threads that prepare images ahead; 0: none", Need::Optional, between(0, kMaxThreads)});
}

template <typename V>
void ParameterGroup::visit(V& v) {
  v.field("pattern", pattern, {"regular expression for parameter names", Need::Required});
  v.field("lr", lr, {"learning rate of the group", Need::Optional, above(0)});
  v.field("weight_decay", weight_decay, {"weight decay of the group", Need::Optional, at_least(0)});
}

template <typename V>
void Optimizer::visit(V& v) {
  v.field("type", type, {"update rule"});
  v.field("lr", lr, {"peak learning rate", Need::Required, above(0)});
  v.field("betas", betas, {"decay of the moments"});
  v.field("eps", eps, {"added to the root of the second moment", Need::Optional, above(0)});
  v.field("momentum", momentum, {"sgd only", Need::Optional, within(0, 1)});
  v.field("nesterov", nesterov, {"sgd only"});
  v.field("weight_decay", weight_decay,
          {"decoupled; never on tensors of fewer than two dimensions", Need::Optional, at_least(0)});
  v.field("groups", groups, {"learning rate and decay by parameter name"});
  v.field("lora_plus_ratio", lora_plus_ratio, {"learning rate of B over that of A", Need::Optional, above(0)});
  v.field("schedule", schedule, {"learning rate over the steps"});
  v.field("num_warmup_steps", num_warmup_steps, {"steps of linear rise", Need::Optional, at_least(0)});
  v.field("num_decay_steps", num_decay_steps, {"wsd: steps of decay", Need::Optional, at_least(1)});
  v.field("min_lr_ratio", min_lr_ratio, {"cosine, wsd: final over peak", Need::Optional, within(0, 1)});
  v.field("clip_grad_norm", clip_grad_norm, {"largest gradient norm; 0: off", Need::Optional, at_least(0)});
}

template <typename V>
void EarlyStopping::visit(V& v) {
  v.field("patience", patience, {"evaluations without improvement", Need::Required, at_least(1)});
  v.field("measure", measure, {"what must improve", Need::Required});
}

template <typename V>
void KeepBest::visit(V& v) {
  v.field("measure", measure, {"what decides", Need::Required});
}

template <typename V>
void Training::visit(V& v) {
  v.field("epochs", epochs, {"passes over the data; this or max_steps", Need::Optional, between(1, kMaxCount)});
  v.field("max_steps", max_steps, {"optimizer steps; this or epochs", Need::Optional, between(1, kMaxCount)});
  v.field("batch_size", batch_size, {"samples per micro-batch", Need::Required});
  v.field("global_batch_size", global_batch_size,
          {"samples per optimizer step, with batch_size auto", Need::Optional, between(1, kMaxCount)});
  v.field("gradient_accumulation_steps", gradient_accumulation_steps,
          {"micro-batches per optimizer step", Need::Optional, between(1, kMaxCount)});
  v.field("activation_checkpointing", activation_checkpointing, {"what is recomputed instead of kept"});
  v.field("device", device, {"where it runs"});
  v.field("threads", threads, {"CPU threads; 0: all", Need::Optional, between(0, kMaxThreads)});
  v.field("seed", seed, {"of order, dropout and new weights", Need::Optional, at_least(0)});
  v.field("eval_every_steps", eval_every_steps, {"0: at the end of each epoch", Need::Optional, at_least(0)});
  v.field("early_stopping", early_stopping, {"stop when a measure no longer improves"});
  v.field("keep_best", keep_best, {"publish the best evaluation's weights"});
  v.field("checkpoint_every_steps", checkpoint_every_steps, {"0: at the end only", Need::Optional, at_least(0)});
  v.field("checkpoint_every_minutes", checkpoint_every_minutes, {"0: off", Need::Optional, at_least(0)});
  v.field("keep_checkpoints", keep_checkpoints, {"newest checkpoints kept", Need::Optional, at_least(1)});
  v.field("on_nonfinite", on_nonfinite, {"what a NaN or infinity does"});
}

template <typename V>
void Output::visit(V& v) {
  v.field("dir", dir, {"run directory, relative to the current one", Need::Required, {}, true});
  v.field("log_every_steps", log_every_steps,
          {"terminal only: metrics.jsonl has every step", Need::Optional, at_least(1)});
  v.field("tensorboard", tensorboard, {"also write TensorBoard events"});
  v.field("merged", merged, {"also write the merged model"});
}

template <typename V>
void Recipe::visit(V& v) {
  v.field("model", model, {"what is trained", Need::Required});
  v.field("adapter", adapter, {"how it is trained", Need::Required});
  v.field("quant", quant, {"four-bit storage"});
  v.field("data", data, {"on what", Need::Required});
  v.field("optimizer", optimizer, {"by which updates", Need::Required});
  v.field("training", training, {"for how long, in which portions", Need::Required});
  v.field("output", output, {"where results go", Need::Required});
}

}  // namespace lathe::recipe
