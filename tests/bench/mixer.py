"""A training step of a Mixer (forward, backward, AdamW) against timm, A B B A: python mixer.py MIXER_STEP [--model mixer_s16_224] [--batch 16] [--pairs 7]

MIXER_STEP is build/release/bin/lathe_mixer_step. Prints, plain, with activation checkpointing `elementwise` and in bfloat16, the median
over the pairs of the ratio of own CPU seconds per step at one thread, and the peak resident memory over timm's. --wall: the wall ratio at two threads.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile

import torch
from compare import AVX2, run
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "interop"))
from timm_models import timm  # noqa: E402


def write_model(directory, name):
    model = timm.create_model(name)
    save_file(model.state_dict(), os.path.join(directory, "model.safetensors"))
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        json.dump({"architecture": name, "num_classes": model.num_classes, "pretrained_cfg": {"mean": [0.5], "std": [0.5]}}, file)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("step")
    parser.add_argument("--model", default="mixer_s16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", default=["none", "elementwise", "bfloat16"])
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--avx2", action="store_true", help="hold both sides to what a processor without AVX-512 runs")
    args = parser.parse_args()
    os.environ.update(AVX2 if args.avx2 else {})
    threads, key = (2, "wall_s") if args.wall else (1, "cpu_s")
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        write_model(folder, args.model)
        batch = os.path.join(folder, "batch.safetensors")
        save_file({"pixel_values": torch.randn(args.batch, 3, 224, 224), "labels": torch.arange(args.batch) % 10}, batch)
        seconds = lambda result: statistics.median(result[key][1:])  # the first step warms caches and allocators
        commands = {job: [args.step, folder, batch, "-", str(args.steps), *(("none", job) if job == "bfloat16" else (job, "float32"))] for job in args.jobs}
        peer_of = {job: "timm bfloat16" if job == "bfloat16" else "timm float32" for job in args.jobs}
        for peer in peer_of.values():
            commands[peer] = [sys.executable, os.path.join(HERE, "mixer_peer.py"), folder, batch, str(args.steps), peer.split()[1]]
        rounds = []
        for number in range(args.pairs):
            rounds.append({name: run(commands[name], threads) for name in (list(commands) if number % 2 == 0 else reversed(list(commands)))})
        for job in args.jobs:
            ratios = [seconds(results[peer_of[job]]) / seconds(results[job]) for results in rounds]
            middle = lambda name, value: statistics.median(value(results[name]) for results in rounds)
            peaks = [middle(name, lambda result: result["peak_rss_mib"]) for name in (job, peer_of[job])]
            line = {"model": args.model, "batch": args.batch, "job": job, "measure": key, "threads": threads, "ratio": round(statistics.median(ratios), 3),
                    "ratios": [round(ratio, 3) for ratio in ratios], "ours_s": round(middle(job, seconds), 3), "peer_s": round(middle(peer_of[job], seconds), 3),
                    "peak_rss_mib": peaks, "memory_ratio": round(peaks[0] / peaks[1], 3)}
            if job == "elementwise" and "none" in args.jobs:
                line["over_none"] = round(statistics.median(seconds(results[job]) / seconds(results["none"]) for results in rounds), 3)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
