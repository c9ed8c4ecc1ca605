"""TensorBoard reads what lathe::report::EventWriter writes: every step, value and time.

    WRITE_EVENTS=build/release/bin/lathe_write_events python3 tests/interop/tensorboard.py
"""
import math
import os
import subprocess
import sys

# Python puts this file's own folder first, where this file would be found as tensorboard.
FOLDER = sys.path.pop(0)
import numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, FOLDER)
import common


def check(name, scalars, expected):
    """Compares (step, wall_time, value) exactly; values are float32."""
    actual = [(s.step, s.wall_time, s.value) for s in scalars]
    expected = [(step, time, float(numpy.float32(value))) for step, time, value in expected]
    if actual != expected:
        sys.exit(f"FAILED {name}: {actual[:3]}... of {len(actual)}, expected {expected[:3]}... of {len(expected)}")
    print(f"{name}: {len(actual)} scalars equal")


def main():
    with common.scratch() as folder:
        subprocess.run([os.environ["WRITE_EVENTS"], folder], check=True)
        events = EventAccumulator(folder, size_guidance={"scalars": 0})
        events.Reload()
        if events.file_version != 2.0 or sorted(events.Tags()["scalars"]) != ["eval/größe", "train/loss", "train/lr"]:
            sys.exit(f"FAILED: version {events.file_version}, tags {events.Tags()}")
        steps = range(1, 201)
        check("train/loss", events.Scalars("train/loss"), [(i, 1700000000 + 0.25 * i, math.sin(0.1 * i)) for i in steps])
        check("train/lr", events.Scalars("train/lr"), [(i, 1700000000 + 0.25 * i, 1e-5 * i) for i in steps])
        check("eval/größe", events.Scalars("eval/größe"), [(1 << 40, 1700000100, math.inf)])


if __name__ == "__main__":
    main()
