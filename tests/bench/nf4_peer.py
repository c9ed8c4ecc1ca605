"""What nf4_bench.cc measures, by bitsandbytes (and PEFT): nf4_peer.py ops | nf4_peer.py step fp32|bf16 REPEATS"""
import json
import os
import resource
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bitsandbytes as bnb
import bitsandbytes.functional as bf
import torch

if "LATHE_BENCH_AVX2" in os.environ:
    torch.backends.mkldnn.set_flags(False)  # which is what a processor without AVX-512 gets in bfloat16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
result = {}


def own_cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(name, repeats, inner, run):
    cpu, wall = [], []
    for i in range(-1, repeats):
        cpu_start, wall_start = own_cpu(), time.perf_counter()
        for _ in range(inner):
            run()
        if i >= 0:
            cpu.append((own_cpu() - cpu_start) / inner)
            wall.append((time.perf_counter() - wall_start) / inner)
    result[name] = {"cpu_s": statistics.median(cpu), "wall_s": statistics.median(wall)}


def four_bit(out_features, in_features, dtype, weight):
    layer = bnb.nn.Linear4bit(in_features, out_features, bias=False, compute_dtype=dtype, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    return layer.to("cpu")


def operations():
    torch.manual_seed(0)
    dense = torch.randn(4096, 4096)
    for word, dtype in DTYPES.items():
        weight = dense.to(dtype)
        if word == "fp32":
            measure("quantize fp32", 3, 1, lambda: bf.quantize_4bit(weight, quant_type="nf4", compress_statistics=True))
        packed, state = bf.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        measure(f"dequantize {word}", 9, 2, lambda: bf.dequantize_4bit(packed, state))
        # As in training: in evaluation with AVX512_BF16 the peer repacks the weight and rounds scales and input to bfloat16.
        layer = four_bit(4096, 4096, dtype, weight).train()
        for rows in (1, 16, 512):
            x = torch.randn(rows, 4096).to(dtype)
            measure(f"linear {word} M{rows}", 5 if rows < 64 else 3, 2 if rows < 64 else 1, lambda: layer(x))
        if word == "bf16":
            layer = four_bit(4096, 4096, dtype, weight).eval()
            x = torch.randn(1, 4096).to(dtype)
            measure("linear bf16 M1 repacked", 9, 8, lambda: layer(x))


class Block(torch.nn.Module):
    def __init__(self, dtype, hidden=2048, wide=5632):
        super().__init__()
        for name, out, inner in (("q_proj", hidden, hidden), ("k_proj", hidden, hidden), ("v_proj", hidden, hidden), ("o_proj", hidden, hidden),
                                 ("gate_proj", wide, hidden), ("up_proj", wide, hidden), ("down_proj", hidden, wide)):
            setattr(self, name, four_bit(out, inner, dtype, torch.empty(out, inner, dtype=dtype).uniform_(-0.1 * inner ** -0.5, 0.1 * inner ** -0.5)))

    def forward(self, x):
        x = x + self.o_proj(self.q_proj(x) + self.k_proj(x) + self.v_proj(x))
        return x + self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def step(word, repeats):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    dtype = DTYPES[word]
    stack = torch.nn.Sequential(*(Block(dtype) for _ in range(4)))
    names = [name for name, module in stack.named_modules() if isinstance(module, bnb.nn.Linear4bit)]
    model = get_peft_model(stack, LoraConfig(r=16, lora_alpha=32, target_modules=names)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    x = torch.randn(1024, 2048).to(dtype)

    def run():
        optimizer.zero_grad(set_to_none=True)
        model(x).float().square().mean().backward()
        optimizer.step()

    measure("step", repeats, 1, run)


with torch.no_grad() if sys.argv[1] == "ops" else torch.enable_grad():
    operations() if sys.argv[1] == "ops" else step(sys.argv[2], int(sys.argv[3]))
print(json.dumps(result))
