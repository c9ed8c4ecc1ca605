"""Lathe against transformers + PEFT on the quickstart's step, A B B A: python compare.py BENCH [--pairs 7] [--steps 8]

BENCH is build/dev/bin/lathe_minilm_step; run with the Python of cmake/setup.sh bench. Prints, with and without dropout, the median
over the pairs of the ratio of own CPU seconds per step at one thread, the wall ratio at two threads beside it, the start of the
process to the end of the first step, and the peak memory.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("LATHE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "lathe")
MODEL = os.path.join(CACHE, "models", "all-MiniLM-L6-v2")


# What holds both sides to a processor without AVX-512: ATen, both copies of oneDNN, MKL, and the benches themselves.
AVX2 = {"LATHE_BENCH_AVX2": "1", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def run(command, threads, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), **environment}
    env.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1") if "lathe" in os.path.basename(command[0]) else None
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    return json.loads(done.stdout.strip().split("\n")[-1])


def step_time(result, key):
    return statistics.median(result[key][2:])  # the first steps warm caches and allocators


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = os.path.join(folder, "rows.jsonl")
        with open(rows, "w") as file:
            for i in range(16):
                ids = [101, *(1000 + (i * 7919 + c * 104729) % 28000 for c in range(126)), 102]
                file.write(json.dumps({"input_ids": ids, "label": str(i % 2)}) + "\n")
        ours = [args.bench, MODEL, rows]
        peer = [sys.executable, os.path.join(HERE, "minilm_peer.py"), MODEL, rows]
        for name, dropout in (("dropout 0.1", []), ("no dropout", ["0"])):
            for threads, key in ((1, "cpu_s"), (2, "wall_s")):
                ratios, kept = [], []
                for pair in range(args.pairs):
                    order = [("ours", ours), ("peer", peer)] if pair % 2 == 0 else [("peer", peer), ("ours", ours)]
                    results = {who: run([*command, str(args.steps), *dropout], threads) for who, command in order}
                    ratios.append(step_time(results["peer"], key) / step_time(results["ours"], key))
                    kept.append(results)
                median = lambda who, value: statistics.median(value(result[who]) for result in kept)
                line = {"job": f"{name}, {threads} thread{'s' if threads > 1 else ''}", "measure": key, "ratio": round(statistics.median(ratios), 3),
                        "ratios": [round(r, 3) for r in ratios],
                        "ours_s": round(median("ours", lambda r: step_time(r, key)), 4), "peer_s": round(median("peer", lambda r: step_time(r, key)), 4),
                        "first_step_s": [round(median(w, lambda r: r["to_first_step_s"]), 3) for w in ("ours", "peer")],
                        "peak_rss_mib": [median(w, lambda r: r["peak_rss_mib"]) for w in ("ours", "peer")]}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
