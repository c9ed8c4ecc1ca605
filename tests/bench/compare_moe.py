"""compare_moe.py BENCH [--models M,M] [--threads N,N] [--pairs N] [--steps N]: the MoE block next to transformers' grouped back end and to a dense MLP of the same active
size, in A-B-B-A order: medians of the ratios of own CPU seconds per step at one thread, of wall seconds at two, and of peak memory."""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def run(command, threads):
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    return json.loads(subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout.strip().split("\n")[-1])


def step_time(result, key):
    return statistics.median(result[key][1:])  # the first step warms caches and allocators


parser = argparse.ArgumentParser()
parser.add_argument("bench")
parser.add_argument("--models", default="mixtral,qwen3")
parser.add_argument("--threads", default="1,2")
parser.add_argument("--pairs", type=int, default=7)
parser.add_argument("--steps", type=int, default=4)
args = parser.parse_args()
for model in args.models.split(","):
    commands = {"ours": [args.bench, model, "moe", str(args.steps)], "peer": [sys.executable, os.path.join(HERE, "moe_peer.py"), model, str(args.steps)],
                "dense": [args.bench, model, "dense", str(args.steps)]}
    for threads in map(int, args.threads.split(",")):
        key = "cpu_s" if threads == 1 else "wall_s"
        kept = []
        for pair in range(args.pairs):
            order = list(commands) if pair % 2 == 0 else list(reversed(commands))
            kept.append({who: run(commands[who], threads) for who in order})
        ratios = {who: [step_time(r[who], key) / step_time(r["ours"], key) for r in kept] for who in ("peer", "dense")}
        print(json.dumps({"model": model, "threads": threads, "measure": key,
                          "peer_over_ours": round(statistics.median(ratios["peer"]), 3), "ratios": [round(r, 3) for r in ratios["peer"]],
                          "ours_over_dense": round(1 / statistics.median(ratios["dense"]), 3),
                          "ours_s": round(statistics.median(step_time(r["ours"], key) for r in kept), 4),
                          "floor_mib": statistics.median(r["ours"]["floor_mib"] for r in kept),  # the process, weights and gradients: what nobody can save
                          "peak_rss_mib": {who: statistics.median(r[who]["peak_rss_mib"] for r in kept) for who in commands}}), flush=True)
