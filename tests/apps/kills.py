"""Kills a small run at random moments (SIGKILL, inside saves too) and resumes it until it is done: weights and metrics are those of a
run that nobody killed, to the bit.

    LATHE=build/release/bin/lathe python3 tests/apps/kills.py [--kills 300] [--seed 0]
"""
import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

import small_model
from small_model import result

LATHE = os.environ["LATHE"]


def command(directory, run):
    return [LATHE, "train", os.path.join(directory, "recipe.yaml"), "output.dir=" + run, "~training.epochs", "training.max_steps=80",
            "training.checkpoint_every_steps=1", "training.gradient_accumulation_steps=3", "adapter.dropout=0.1", "training.eval_every_steps=7",
            "training.keep_best={measure: accuracy}", "optimizer.lr=0.3",
            "--resume"]


def lines(run):
    try:
        with open(os.path.join(run, "metrics.jsonl"), "rb") as file:
            return file.read().count(b"\n")
    except FileNotFoundError:
        return 0


def kill_at_random(process, run, rng):
    """Kills the process while it starts, or a random while after a random further step; False when it was done before."""
    if rng.random() < 0.1:
        time.sleep(rng.uniform(0, 0.4))
    else:
        goal = lines(run) + rng.randint(1, 25)
        while process.poll() is None and lines(run) < goal:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.02))
    if process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rng = random.Random(args.seed)
    kills = runs = 0
    with tempfile.TemporaryDirectory(prefix="lathe-kills-") as directory:
        small_model.write_small_run(directory)
        straight = os.path.join(directory, "straight")
        subprocess.run(command(directory, straight), env=environment, check=True, capture_output=True)
        expected = result(straight)
        while kills < args.kills:
            run = os.path.join(directory, f"run-{runs}")
            while True:
                process = subprocess.Popen(command(directory, run), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                if kills < args.kills and kill_at_random(process, run, rng):
                    kills += 1
                    continue
                process.wait()
                if process.returncode != 0:
                    sys.exit(f"kill {kills}: --resume ended with {process.returncode}\n{process.stderr.read()}")
                break
            if result(run) != expected:
                sys.exit(f"run {runs} after {kills} kills: another result than the uninterrupted run's")
            shutil.rmtree(run)
            runs += 1
    print(f"{kills} kills, {runs} runs, each with the bits of the uninterrupted one")


main()
