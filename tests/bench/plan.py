"""Recipes drawn at random, planned and measured: LATHE=build/release/bin/lathe python3 tests/bench/plan.py [--count 24] [--seed 0] [--threads 1]

Encoders and Mixers of random sizes with random weights; LoRA or all weights, modules saved beside; four bits, storage and computation in 16 bits, experts
with every router, jitter, capacity and shared experts, checkpointing, dropout, batch, length, accumulation, every optimizer, checkpoints on the way and
evaluations are mixed. `lathe plan --measure` runs real steps of each. Prints every error of the planned peak and the whole distribution; where there are
experts, of the plan for the loads that their routers gave, and of the blind one. Exits 1 when a peak (for these loads) is off by more than 5 %, or the
operations differ from those that were counted while a step ran.
"""
import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile

LATHE = os.environ.get("LATHE", "build/release/bin/lathe")
WITHIN = 0.05


def draw_encoder(rng):
    heads = rng.choice([2, 4, 8])
    hidden = heads * rng.choice([16, 24, 32, 48, 64])
    length = rng.randrange(24, 257)
    arch = {"model_type": "bert", "vocab_size": rng.randrange(200, 12000), "hidden_size": hidden, "num_hidden_layers": rng.randrange(2, 9),
            "num_attention_heads": heads, "intermediate_size": rng.choice([2, 3, 4]) * hidden, "max_position_embeddings": length + rng.randrange(0, 257)}
    model = {"task": "classification", "init": "random", "max_length": length, "arch": arch}
    if rng.random() < 0.5:
        model["dropout"] = rng.choice([0, 0.1])
    return model, length


def draw_mixer(rng):
    patch = rng.choice([4, 8])
    side = patch * rng.randrange(4, 9)
    arch = {"model_type": "mixer", "image_size": side, "patch_size": patch, "num_blocks": rng.randrange(2, 9), "hidden_size": 32 * rng.randrange(2, 11)}
    return {"task": "image_classification", "init": "random", "arch": arch}, (side // patch) ** 2


def draw_experts(rng):
    moe = {"num_experts": rng.choice([2, 3, 4, 8, 16, 64]), "router": rng.choice(["softmax", "sigmoid", "noisy", "expert_choice", "random"])}
    moe["top_k"] = rng.choice([1, 2, 2, 4])
    if moe["top_k"] > moe["num_experts"]:
        moe["top_k"] = moe["num_experts"]
    if moe["top_k"] == 1 or rng.random() < 0.3:
        moe["renormalise"] = False
    if rng.random() < 0.4:
        moe["capacity_factor"] = rng.choice([0.5, 1, 1.25, 2])
    if rng.random() < 0.3:
        moe["shared_experts"] = rng.choice([1, 2])
    if rng.random() < 0.4:
        moe["aux_loss_weight"] = rng.choice([0, 0.1])
    if rng.random() < 0.4:
        moe["z_loss_weight"] = 0.001
    if moe["router"] in ("softmax", "sigmoid"):
        if rng.random() < 0.4:
            moe["jitter"] = 0.01
        if rng.random() < 0.4:
            moe["bias_update_rate"] = 0.001
    return moe


def draw_adapter(rng, images, experts):
    if rng.random() < 0.4:
        return {"type": "none"}, {}
    adapter = {"type": "lora", "rank": rng.choice([1, 2, 4, 8, 16, 32]), "alpha": 16}
    if rng.random() < 0.5:
        adapter["target_modules"] = "all-linear"
    elif images and experts:
        adapter["target_modules"] = ["mlp_tokens.fc1"]
    if rng.random() < 0.4:
        adapter["dropout"] = 0.1
    if rng.random() < 0.3:
        adapter["modules_to_save"] = rng.choice([["norm"], ["stem.proj"]] if images else [["pooler.dense"], ["word_embeddings"]])
    elif experts and rng.random() < 0.3:
        adapter["modules_to_save"] = ["gate"]
    quant = {}
    if rng.random() < 0.5:
        quant = {"type": rng.choice(["nf4", "fp4"]), "double_quant": rng.random() < 0.5, "blocksize": rng.choice([32, 64, 128])}
    return adapter, quant


def draw(rng):
    images = rng.random() < 0.45
    model, length = draw_mixer(rng) if images else draw_encoder(rng)
    experts = rng.random() < 0.25
    if experts:
        model["moe"] = draw_experts(rng)
    adapter, quant = draw_adapter(rng, images, experts)
    if rng.random() < 0.4:
        model["dtype"] = "bfloat16"
        model["compute"] = rng.choice(["float32", "bfloat16"])
    layers = model["arch"]["num_blocks" if images else "num_hidden_layers"]
    policy = rng.choice(["none", "none", "elementwise", "full", {"every": 2}, {"layers": rng.randrange(1, layers + 1)}])
    # Up to 4096 tokens of a micro-batch: seconds, not minutes.
    batch = rng.randrange(1, max(2, 4096 // length))
    optimizer = {"lr": 0.001, "type": rng.choice(["adamw", "adamw", "adam", "sgd"])}
    if optimizer["type"] == "sgd" and rng.random() < 0.5:
        optimizer["momentum"] = 0.9
    training = {"max_steps": 2, "batch_size": batch, "gradient_accumulation_steps": rng.choice([1, 1, 2, 3]), "activation_checkpointing": policy}
    data = {"train": "unused"}
    if rng.random() < 0.3:
        data["eval_fraction"] = 0.1
        if rng.random() < 0.5:
            training["keep_best"] = {"measure": "accuracy"}
    if rng.random() < 0.3:
        training["checkpoint_every_steps"] = 1
    recipe = {"model": model, "adapter": adapter, "data": data, "optimizer": optimizer, "training": training, "output": {"dir": "unused"}}
    if quant:
        recipe["quant"] = quant
    return recipe


def in_words(recipe):
    model, training, adapter = recipe["model"], recipe["training"], recipe["adapter"]
    arch = model["arch"]
    words = [arch["model_type"], f"{arch.get('num_blocks', arch.get('num_hidden_layers'))}x{arch['hidden_size']}"]
    if "moe" in model:
        moe = model["moe"]
        marks = [mark for key, mark in (("shared_experts", "shared"), ("capacity_factor", "capacity"), ("jitter", "jitter")) if key in moe]
        words.append(" ".join([f"{moe['router']} {moe['top_k']}/{moe['num_experts']}", *marks]))
    words.append("all weights" if adapter["type"] == "none" else f"lora {adapter['rank']}" + (" all" if adapter.get("target_modules") == "all-linear" else ""))
    if "quant" in recipe:
        words.append(recipe["quant"]["type"] + ("+" if recipe["quant"]["double_quant"] else ""))
    if "dtype" in model:
        words.append("bf16" + ("*" if model["compute"] == "bfloat16" else ""))
    policy = training["activation_checkpointing"]
    if policy != "none":
        words.append(policy if isinstance(policy, str) else " ".join(f"{key} {value}" for key, value in policy.items()))
    words.append(f"{training['gradient_accumulation_steps']}x{training['batch_size']}" + (f"x{model['max_length']}" if "max_length" in model else ""))
    if "modules_to_save" in adapter:
        words.append("saves " + adapter["modules_to_save"][0])
    words.append(recipe["optimizer"]["type"] + ("+" if "momentum" in recipe["optimizer"] else ""))
    if "checkpoint_every_steps" in training or "keep_best" in training:
        words.append("checkpoints")
    if "eval_fraction" in recipe["data"]:
        words.append("eval")
    return ", ".join(words)


def measure(recipe, folder, threads):
    path = os.path.join(folder, "recipe.yaml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(re.sub(r'"(none|elementwise|full)"', r"\1", json.dumps(recipe, indent=1)))  # JSON is YAML; these words stand without quotes
    done = subprocess.run([LATHE, "plan", path, f"training.threads={threads}", "--measure", "--json"], capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        sys.exit(f"{in_words(recipe)}\n{json.dumps(recipe)}\n{done.stderr}")
    return json.loads(done.stdout)


def distribution(name, errors):
    ordered = sorted(abs(error) for error in errors)
    at = lambda part: ordered[min(len(ordered) - 1, int(part * len(ordered)))]
    print(f"{name}: of {len(ordered)}, median {100 * at(0.5):.2f} %, nine tenths within {100 * at(0.9):.2f} %, all within {100 * ordered[-1]:.2f} %; "
          f"mean {100 * statistics.mean(errors):+.2f} %")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    peaks, blinds, activations, times, wrong = [], [], [], [], 0
    print("    peak (blind)  activations    time   measured  recipe")
    with tempfile.TemporaryDirectory(prefix="lathe-plan-") as folder:
        for _ in range(args.count):
            recipe = draw(rng)
            plan = measure(recipe, folder, args.threads)
            measured = plan["measured"]
            blind = plan["memory_bytes"]["peak"] / measured["peak"] - 1
            for_loads = measured["planned_for_loads"]
            peak = for_loads["peak"] / measured["peak"] - 1
            kept = for_loads["activations"] / measured["activations"] - 1
            seconds = plan["seconds_per_step"]
            time = seconds / measured["seconds_per_step"] - 1 if seconds else None
            counted = for_loads["flops_per_step"] == measured["flops_per_step"]
            fails = abs(peak) > WITHIN or not counted
            wrong += fails
            peaks.append(peak)
            blinds.append(blind)
            activations.append(kept)
            times += [] if time is None else [time]
            print(f"{100 * peak:+7.2f} %{100 * blind:+8.2f} %{100 * kept:+9.2f} %" + (f"{100 * time:+7.0f} %" if time is not None else "       -") + f"{measured['peak'] / 2**20:8.1f} M  "
                  f"{in_words(recipe)}" + ("" if counted else f"  {for_loads['flops_per_step']} operations planned, {measured['flops_per_step']} counted")
                  + ("  WRONG" if fails else ""), flush=True)
    distribution("peak", peaks)
    distribution("peak, loads of experts unknown", blinds)
    distribution("activations", activations)
    if times:
        distribution("time", times)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
