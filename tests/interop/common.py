"""Shared by the tests against the Python peers: where things are, running lathe, comparing."""
import json
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # bitsandbytes compiles small functions: minutes for nothing here

CACHE = os.environ.get("LATHE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "lathe")
MODEL = os.path.join(CACHE, "models", "all-MiniLM-L6-v2")
DATA = os.path.join(CACHE, "data", "spam-assassin")
LATHE = os.environ.get("LATHE", "lathe")  # the program under test; ctest sets it


def lathe(*words, code=0):
    """Runs lathe and returns its stdout; any other exit code than expected ends the test."""
    done = subprocess.run([LATHE, *map(str, words)], capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"lathe {' '.join(map(str, words))}: exit {done.returncode}, expected {code}\n{done.stderr[-2000:]}")
    return done.stdout


def mails(part, count=None):
    with open(os.path.join(DATA, part + ".jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return lines[:count]


def write_jsonl(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def worst(name, actual, expected, atol, rtol=0.0):
    """Prints the largest difference and ends the test when an element is outside atol + rtol |expected|."""
    difference = (actual.double() - expected.double()).abs()
    outside = int((difference > atol + rtol * expected.double().abs()).sum())
    print(f"{name}: largest difference {float(difference.max()):.3g} of {expected.numel()} (bound {atol:g} + {rtol:g} relative)")
    if actual.shape != expected.shape or outside or not bool(difference.isfinite().all()):
        sys.exit(f"FAILED {name}: {outside} elements outside, shapes {tuple(actual.shape)} and {tuple(expected.shape)}")


def scratch():
    return tempfile.TemporaryDirectory(prefix="lathe-interop-")


def experts_on_disk(state, kind, prefix):
    """The module's names and fused experts -> the names and the per-expert tensors of transformers' files."""
    gate, up, down = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    tensors = {}
    for name, tensor in state.items():
        if name == "experts.gate_up_proj":
            for e in range(len(tensor)):
                tensors[f"{prefix}experts.{e}.{gate}.weight"], tensors[f"{prefix}experts.{e}.{up}.weight"] = tensor[e].chunk(2)
        elif name == "experts.down_proj":
            for e in range(len(tensor)):
                tensors[f"{prefix}experts.{e}.{down}.weight"] = tensor[e]
        else:
            tensors[prefix + name] = tensor
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
