"""The quickstart job on its real model and mails, its first steps: the process takes the memory that was planned, and what is not training costs
next to nothing.

    LATHE=build/release/bin/lathe python3 tests/apps/quickstart_job.py [--steps 30]

Needs what cmake/fetch_data.sh fetches. The job writes a checkpoint every 10 steps here; the recipe alone writes one, at the end.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

MOST_RESIDENT, MOST_OVERHEAD, PLAN_ERROR = 1.10, 0.01, 0.05


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lathe-quickstart-") as run:
        done = subprocess.run([os.environ["LATHE"], "train", "quickstart", "~training.epochs", f"training.max_steps={args.steps}",
                               "training.checkpoint_every_steps=10", "output.tensorboard=true", "output.dir=" + run], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr)
        with open(os.path.join(run, "run.json"), encoding="utf-8") as file:
            facts = json.load(file)
    measured, overheads, planned = facts["measured"], facts["overheads"], facts["planned"]["peak_bytes"]
    resident = measured["peak_rss_bytes"] / (measured["base_bytes"] + planned)
    live = measured["peak_bytes"] / planned
    cpu = (overheads["metrics_cpu_seconds"] + overheads["checkpoints_cpu_seconds"]) / overheads["process_cpu_seconds"]
    print(f"planned {planned >> 20} MiB, live {live:.3f} of it, resident {resident:.3f} of it and the process's own {measured['base_bytes'] >> 20} MiB")
    print(f"metrics, progress and checkpoints: {100 * cpu:.3f} % of the CPU time of {args.steps} steps")
    if not (1 / MOST_RESIDENT <= resident <= MOST_RESIDENT and abs(live - 1) <= PLAN_ERROR and cpu < MOST_OVERHEAD):
        sys.exit("expected within 10 % resident, 5 % live, and under 1 % of the CPU time")


main()
