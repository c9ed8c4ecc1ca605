"""Start of the process to the end of the first step of the quickstart, Lathe against transformers + PEFT, A B B A:
python compare_start.py LATHE [--pairs 7] [--threads 2]

Run with the Python of cmake/setup.sh test, after cmake/fetch_data.sh. Ours is `lathe train quickstart` as anyone runs it: it checks
the recipe, plans, reads all 5,444 e-mails and tokenises the first batch. The peer reads 16 e-mails, tokenises them and takes one step.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("LATHE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "lathe")
MODEL = os.path.join(CACHE, "models", "all-MiniLM-L6-v2")
EMAILS = os.path.join(CACHE, "data", "spam-assassin", "train.jsonl")


def ours(lathe, threads, folder):
    command = [lathe, "train", "quickstart", "output.log_every_steps=1", f"training.threads={threads}", f"output.dir={folder}"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        first = next((line for line in process.stderr if line.startswith("step 1/")), None)
        seconds = time.perf_counter() - start
        process.kill()
    assert first, "no first step"
    return seconds


def peer(threads, rows):
    start = time.perf_counter()
    subprocess.run([sys.executable, os.path.join(HERE, "minilm_peer.py"), MODEL, rows, "1"], check=True, capture_output=True,
                   env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lathe")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = os.path.join(folder, "rows.jsonl")
        with open(EMAILS) as source, open(rows, "w") as file:
            file.writelines(next(source) for _ in range(16))
        pairs = []
        for pair in range(-1, args.pairs):  # the first only warms the page cache
            measure = {"ours": lambda: ours(args.lathe, args.threads, os.path.join(folder, f"run{pair}")),
                       "peer": lambda: peer(args.threads, rows)}
            order = ("ours", "peer") if pair % 2 == 0 else ("peer", "ours")
            seconds = {who: measure[who]() for who in order}
            if pair >= 0:
                pairs.append(seconds)
        ratios = [seconds["peer"] / seconds["ours"] for seconds in pairs]
        print(json.dumps({"job": f"start to first step, {args.threads} threads", "ratio": round(statistics.median(ratios), 2),
                          "ratios": [round(ratio, 2) for ratio in ratios],
                          "ours_s": round(statistics.median(p["ours"] for p in pairs), 3),
                          "peer_s": round(statistics.median(p["peer"] for p in pairs), 3)}))


if __name__ == "__main__":
    main()
