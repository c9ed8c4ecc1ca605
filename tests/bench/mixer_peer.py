"""timm's side of mixer.py: trains a Mixer on one batch and prints each step's CPU and wall seconds, as mixer_step does.

    python mixer_peer.py MODEL_DIRECTORY BATCH.safetensors STEPS [float32 | bfloat16]
"""
import json
import os
import resource
import sys
import time

import torch
from safetensors.torch import load_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))
from timm_models import timm  # noqa: E402

if "LATHE_BENCH_AVX2" in os.environ:
    torch.backends.mkldnn.set_flags(False)  # which is what a processor without AVX-512 gets in bfloat16
directory, batch, steps = sys.argv[1:4]
dtype = getattr(torch, sys.argv[4] if len(sys.argv) > 4 else "float32")
with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
    model = timm.create_model(json.load(file)["architecture"])
model.load_state_dict(load_file(os.path.join(directory, "model.safetensors")))
model.to(dtype).train()
batch = load_file(batch)
pixels, labels = batch["pixel_values"].to(dtype), batch["labels"]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
cpu, wall = [], []
for _ in range(int(steps)):
    before, start = time.process_time(), time.perf_counter()
    loss = torch.nn.functional.cross_entropy(model(pixels).float(), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    loss.item()
    cpu.append(time.process_time() - before)
    wall.append(time.perf_counter() - start)
print(json.dumps({"cpu_s": cpu, "wall_s": wall, "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
