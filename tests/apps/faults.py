"""A run whose calls to the disk fail, one at a time: the error names a file of the run, what was saved stays whole, and --resume ends
with the same bytes as a run without faults.

    LATHE=build/release/bin/lathe LATHE_FAIL_CALL=build/release/tests/libfail_call.so python3 tests/apps/faults.py [--every N]

Every call is tried with ENOSPC and EIO, every write also cut short. --every N takes only each N-th of these. The run keeps its best
evaluation, an early one: where the disk does not take that checkpoint, the program says so and publishes the last weights.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import small_model
from small_model import result

LATHE = os.environ["LATHE"]


def train(directory, run, resume=False, fault="", log="", keep_best=True):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if fault or log:
        environment.update(LD_PRELOAD=os.environ["LATHE_FAIL_CALL"], LATHE_FAULT_DIRECTORY=run, LATHE_FAULT=fault, LATHE_FAULT_LOG=log)
    command = [LATHE, "train", os.path.join(directory, "recipe.yaml"), "output.dir=" + run, "training.checkpoint_every_steps=2",
               "adapter.dropout=0.1", "training.gradient_accumulation_steps=2", "training.eval_every_steps=1", "optimizer.lr=0.3"]
    command += ["training.keep_best={measure: accuracy}"] * keep_best + ["--resume"] * resume
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def check(directory, number, call, kind, best, last):
    run = os.path.join(directory, f"run-{number}-{kind}")
    name = f"call {number} ({call}) with {kind}"
    broken = train(directory, run, fault=f"{number}:{kind}")
    if broken.returncode not in (0, 1, 2, 4):
        sys.exit(f"{name}: exit {broken.returncode}\n{broken.stderr}")
    expected = last if "not the best evaluation's" in broken.stderr else best
    complaints = [line for line in broken.stderr.split("\n") if line.startswith(("error: ", "warning: "))]
    if broken.returncode != 0 and (len(complaints) == 0 or not any(run in line for line in complaints)):
        sys.exit(f"{name}: no line names a file of the run\n{broken.stderr}")
    if broken.returncode == 0 and kind != "short" and not complaints and result(run) != expected:
        sys.exit(f"{name}: silently another result")
    resumed = train(directory, run, resume=True)
    expected = last if "not the best evaluation's" in broken.stderr + resumed.stderr else best
    if resumed.returncode != 0:
        sys.exit(f"{name}: --resume ends with {resumed.returncode}\n{broken.stderr}\n{resumed.stderr}")
    if result(run) != expected:
        sys.exit(f"{name}: another result after --resume\n{broken.stderr}\n{resumed.stderr}")
    return broken.returncode


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lathe-faults-") as directory:
        small_model.write_small_run(directory)
        log = os.path.join(directory, "calls")
        good = train(directory, os.path.join(directory, "run"), log=log)
        if good.returncode != 0:
            sys.exit(good.stderr)
        best = result(os.path.join(directory, "run"))
        if train(directory, os.path.join(directory, "run-last"), keep_best=False).returncode != 0:
            sys.exit("the run without keep_best fails")
        last = result(os.path.join(directory, "run-last"))
        if last[0] == best[0] or last[1] != best[1]:
            sys.exit("the best evaluation is no earlier one, or keeping it changes the run")
        with open(log) as file:
            calls = [line.split(" ", 1)[0] for line in file]
        cases = [(number, call, kind) for number, call in enumerate(calls, 1)
                 for kind in ["ENOSPC", "EIO"] + ["short"] * (call == "write")]
        codes = [check(directory, *case, best, last) for case in cases[:: args.every]]
        print(f"{len(calls)} calls, {len(codes)} faults: exit codes", {code: codes.count(code) for code in sorted(set(codes))})


main()
