"""compare_moe.py BENCH [--models M,M] [--threads N,N] [--pairs N]: the MoE block next to transformers' grouped back end and to a dense MLP of the same active
size. All three are started and warmed once, then take one step each in A-B-B-A order: medians of the ratios of own CPU seconds at one thread, of wall seconds at
two, and of peak memory. A model at one number of threads takes about a minute on an idle machine."""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
WARM_STEPS = 2


class Side:
    """A process that takes a step when asked."""

    def __init__(self, command, threads):
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def step(self):
        print(file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        return json.loads(self.process.communicate()[0])


parser = argparse.ArgumentParser()
parser.add_argument("bench")
parser.add_argument("--models", default="mixtral,qwen3")
parser.add_argument("--threads", default="1,2")
parser.add_argument("--pairs", type=int, default=7)
args = parser.parse_args()
for model in args.models.split(","):
    commands = {"ours": [args.bench, model, "moe"], "peer": [sys.executable, os.path.join(HERE, "moe_peer.py"), model], "dense": [args.bench, model, "dense"]}
    for threads in map(int, args.threads.split(",")):
        key = "cpu_s" if threads == 1 else "wall_s"
        sides = {who: Side(command, threads) for who, command in commands.items()}
        for side in sides.values():
            for _ in range(WARM_STEPS):
                side.step()
        kept = []
        for pair in range(args.pairs):
            order = list(sides) if pair % 2 == 0 else list(reversed(sides))
            kept.append({who: sides[who].step()[key] for who in order})
        ends = {who: side.close() for who, side in sides.items()}
        ratios = {who: [times[who] / times["ours"] for times in kept] for who in ("peer", "dense")}
        print(json.dumps({"model": model, "threads": threads, "measure": key,
                          "peer_over_ours": round(statistics.median(ratios["peer"]), 3), "ratios": [round(r, 3) for r in ratios["peer"]],
                          "ours_over_dense": round(1 / statistics.median(ratios["dense"]), 3), "dense_ratios": [round(1 / r, 3) for r in ratios["dense"]],
                          "seconds": {who: round(statistics.median(times[who] for times in kept), 4) for who in sides},
                          "floor_mib": ends["ours"]["floor_mib"],  # the process, weights and gradients: what nobody can save
                          "peak_rss_mib": {who: end["peak_rss_mib"] for who, end in ends.items()},
                          "memory_ratio": round(ends["ours"]["peak_rss_mib"] / ends["peer"]["peak_rss_mib"], 3)}), flush=True)
