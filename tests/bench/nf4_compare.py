"""Lathe against bitsandbytes on four-bit weights, A B B A: python nf4_compare.py BENCH [ops] [step] [own] [--compute fp32 bf16] [--pairs 7] [--threads 1] [--avx2]

ops: single operations; step: a QLoRA step against bitsandbytes + PEFT; own: the same against Lathe's LoRA step on dense weights.

BENCH is build/dev/bin/lathe_nf4_bench; run with the Python of cmake/setup.sh test. Prints per operation the medians and the median over
the pairs of the ratio, peer over ours: own CPU seconds at one thread, wall seconds at more.
"""
import argparse
import json
import os
import statistics
import sys

from compare import AVX2, run

PEER = [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "nf4_peer.py")]


def pairs(count, threads, ours, peer):
    """[(ours, theirs)] of `count` rounds in the order A B B A."""
    results = []
    for i in range(count):
        order = [ours, peer] if i % 2 == 0 else [peer, ours]
        done = [run(command, threads, OMP_WAIT_POLICY="passive") for command in order]
        results.append(done if i % 2 == 0 else done[::-1])
    return results


def report(label, results, threads, rename=lambda name: name):
    key = "cpu_s" if threads == 1 else "wall_s"
    for name in results[0][1]:
        own = rename(name)
        if own not in results[0][0]:
            continue
        a, b = ([r[who][n][key] for r in results] for who, n in ((0, own), (1, name)))
        ratios = [theirs / mine for mine, theirs in zip(a, b)]
        print(json.dumps({"what": label + name, "threads": threads, "measure": key, "ratio": round(statistics.median(ratios), 2),
                          "ratios": [round(r, 2) for r in ratios], "ours_s": round(statistics.median(a), 5), "peer_s": round(statistics.median(b), 5)}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("bench")
    parser.add_argument("what", nargs="*", default=["ops", "step", "own"])
    parser.add_argument("--compute", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"], help="the type of the products in step and own")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--avx2", action="store_true", help="hold both sides to what a processor without AVX-512 runs (but for bitsandbytes' own kernels)")
    args = parser.parse_args()
    if args.avx2:
        os.environ.update(AVX2)
    if "ops" in args.what:
        results = pairs(args.pairs, args.threads, [args.bench, "ops"], [*PEER, "ops"])
        report("", results, args.threads)
        report("", results, args.threads, lambda name: name.removesuffix(" repacked") if name.endswith("repacked") else "")
    ours = lambda base, storage, compute: [args.bench, "step", base, storage, compute, "3"]
    for compute in args.compute:
        qlora = ours("nf4", compute, compute)
        if "step" in args.what:
            report(f"QLoRA {compute} against bitsandbytes + PEFT: ", pairs(args.pairs, args.threads, qlora, [*PEER, "step", compute, "3"]), args.threads)
        if "own" in args.what:
            for storage in ["fp32", "bf16"] if compute == "fp32" else ["bf16"]:
                name = f"own LoRA on {storage}, products in {compute}"
                report(f"QLoRA {compute} against {name}: ", pairs(args.pairs, args.threads, ours("nf4", storage, compute), ours("dense", storage, compute)), args.threads)


if __name__ == "__main__":
    main()
