"""What four bits cost on the quickstart's job: python nf4_accuracy.py LATHE FOLDER [--seeds 3] [--threads 1]

Trains the quickstart (LoRA) and text/spam_qlora (QLoRA, NF4 with quantised scales) with each seed and measures both on the test part;
then quantises the trained LoRA models, merged, and measures them again: NF4, FP4 and a grid of sixteen even steps, with the relative error of
the weights. Finished runs in FOLDER are taken as they are. Run with the Python of cmake/setup.sh test.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from safetensors.torch import load_file, save_file

RECIPES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "recipes")
CACHE = os.environ.get("LATHE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "lathe")
TEST = "data.eval=" + os.path.join(CACHE, "data", "spam-assassin", "test.jsonl")


def lathe(program, *words):
    return subprocess.run([program, *words], check=True, capture_output=True, text=True).stdout


def decoded(tensors):
    """The four-bit weights of a file by the formula."""
    weights = {}
    for key in [key for key in tensors if ".quant_state." in key]:
        name = key[:key.index(".quant_state.")]
        state, part = json.loads(bytes(tensors[key].tolist())), lambda suffix: tensors[f"{name}.{suffix}"]
        absmax = part("absmax")
        if "nested_offset" in state:
            absmax = part("nested_quant_map")[absmax.long()] * part("nested_absmax").repeat_interleave(256)[:absmax.numel()] + state["nested_offset"]
        packed = tensors[name].flatten()
        values = part("quant_map")[torch.stack([packed >> 4, packed & 15], 1).flatten().long()]
        weights[name] = (values * absmax.repeat_interleave(state["blocksize"])[:values.numel()]).reshape(state["shape"])
    return weights


def even_steps(weight, levels=16, blocksize=64):
    blocks = weight.reshape(-1, blocksize)
    absmax = blocks.abs().amax(1, keepdim=True)
    half = (levels - 1) / 2
    return (((blocks / absmax + 1) * half).round() / half - 1).mul(absmax).reshape(weight.shape)


def relative_error(dense, weights):
    lost = sum(float((weights[name] - dense[name]).double().square().sum()) for name in weights)
    return lost / sum(float(dense[name].double().square().sum()) for name in weights)


def train(args, kind, seed):
    recipe = {"lora": "quickstart.yaml", "qlora": "text/spam_qlora.yaml"}[kind]
    run = os.path.join(args.folder, f"{kind}-{seed}")
    if not os.path.exists(os.path.join(run, "adapter")):
        lathe(args.lathe, "train", os.path.join(RECIPES, recipe), f"training.seed={seed}", f"training.threads={args.threads}", "output.merged=true",
              "output.dir=" + run, *(["--resume"] if os.path.exists(run) else []))
    return json.loads(lathe(args.lathe, "eval", run, TEST, "--json"))


def evaluate(args, model):
    return json.loads(lathe(args.lathe, "eval", os.path.join(RECIPES, "quickstart.yaml"), "model.path=" + model, TEST, "--json"))


def cost(args, seed):
    """{kind: (relative error, measures)} of the LoRA run's merged model in four bits."""
    model = os.path.join(args.folder, f"lora-{seed}", "model")
    dense = load_file(model + "/model.safetensors")
    result = {"dense": (0.0, evaluate(args, model))}
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            name = kind + (", scales quantised" if nested else "")
            out = os.path.join(args.folder, f"{kind}-{nested}-{seed}")
            if not os.path.exists(out):
                lathe(args.lathe, "quantize", "--model", model, "--out", out, "--type", kind, *(["--double-quant"] if nested else []))
            weights = decoded(load_file(out + "/model.safetensors"))
            result[name] = (relative_error(dense, weights), evaluate(args, out))
    grid = os.path.join(args.folder, f"grid-{seed}")
    os.makedirs(grid, exist_ok=True)
    rounded = {name: even_steps(dense[name]) for name in weights}
    save_file({**dense, **rounded}, grid + "/model.safetensors", metadata={"format": "pt"})
    for name in os.listdir(model):
        if name != "model.safetensors":
            with open(os.path.join(model, name), "rb") as source, open(os.path.join(grid, name), "wb") as copy:
                copy.write(source.read())
    result["sixteen even steps"] = (relative_error(dense, rounded), evaluate(args, grid))
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lathe")
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        jobs = {(kind, seed): pool.submit(train, args, kind, seed) for seed in range(args.seeds) for kind in ("lora", "qlora")}
        f1 = {kind: [jobs[kind, seed].result()["f1"] for seed in range(args.seeds)] for kind in ("lora", "qlora")}
        losses = {kind: [jobs[kind, seed].result()["eval_loss"] for seed in range(args.seeds)] for kind in ("lora", "qlora")}
    for kind in f1:
        print(f"{kind:6} F1 {statistics.mean(f1[kind]):.4f} of {[round(value, 4) for value in f1[kind]]}, test loss {statistics.mean(losses[kind]):.4f}")
    costs = [cost(args, seed) for seed in range(args.seeds)]
    print(f"{'':24} weight error  test loss  F1")
    for kind in costs[0]:
        error, loss, score = (statistics.mean(get(c[kind]) for c in costs) for get in (lambda r: r[0], lambda r: r[1]["eval_loss"], lambda r: r[1]["f1"]))
        print(f"{kind:24} {error:12.5f} {loss:10.4f} {score:7.4f}")
    gap = statistics.mean(f1["lora"]) - statistics.mean(f1["qlora"])
    error = (sum(statistics.variance(f1[kind]) / args.seeds for kind in f1)) ** 0.5 if args.seeds > 1 else 0.0
    print(f"QLoRA is {100 * gap:.2f} points of F1 below LoRA; two standard errors are {200 * error:.2f}")
    if gap > max(0.005, 2 * error):
        sys.exit("FAILED: more than 0.5 points and two standard errors")


if __name__ == "__main__":
    main()
