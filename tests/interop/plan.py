"""Plans of decoders against transformers: every weight counted, a step's products by PyTorch's own counter, and the headers of saved weights.

    LATHE=build/release/bin/lathe ~/.cache/lathe/venv/bin/python tests/interop/plan.py
"""
import json
import os
import sys
import tempfile

import torch
from common import lathe
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, MixtralConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

SAMPLES, LENGTH = 3, 20
COMMON = dict(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=64, pad_token_id=0)
EXPERTS = dict(num_experts_per_tok=2, experts_implementation="eager")
CASES = {
    "llama": LlamaConfig(**COMMON),
    "llama with biases": LlamaConfig(**COMMON, attention_bias=True, mlp_bias=True, head_dim=24),
    "llama tied": LlamaConfig(**COMMON, tie_word_embeddings=True),
    "mistral": MistralConfig(**COMMON, sliding_window=None),
    "qwen2": Qwen2Config(**COMMON),
    "qwen3": Qwen3Config(**COMMON, head_dim=32),
    "mixtral": MixtralConfig(**COMMON, num_local_experts=4, **EXPERTS),
    "qwen3_moe": Qwen3MoeConfig(**COMMON, head_dim=32, num_experts=8, moe_intermediate_size=40, decoder_sparse_step=2, norm_topk_prob=True, **EXPERTS),
}


def plan_of(folder):
    recipe = os.path.join(folder, "recipe.yaml")
    with open(recipe, "w", encoding="utf-8") as file:
        json.dump({"model": {"task": "causal_lm", "path": folder, "max_length": LENGTH}, "adapter": {"type": "none"}, "data": {"train": "unused"},
                   "optimizer": {"lr": 0.001}, "training": {"max_steps": 1, "batch_size": SAMPLES}, "output": {"dir": "unused"}}, file, indent=1)
    return json.loads(lathe("plan", recipe, "--json"))


def counted(model, vocabulary):
    """The operations of one step that are not attention's, whose kernel for the CPU the counter does not know."""
    ids = torch.arange(SAMPLES * LENGTH).reshape(SAMPLES, LENGTH) * 7 % vocabulary
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    counts = counter.get_flop_counts()["Global"]
    unknown = {str(operator) for operator in counts} - {"aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"}
    assert not unknown, unknown
    return counts


def reads_headers(model, of_config):
    """With weights in 16 bits and a config.json that does not say so, it is the headers that tell."""
    with tempfile.TemporaryDirectory() as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        path = os.path.join(folder, "config.json")
        with open(path, encoding="utf-8") as file:
            config = {key: value for key, value in json.load(file).items() if "dtype" not in key}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        plan = plan_of(folder)
    same = all(plan[key] == of_config[key] for key in ("parameters", "flops_per_step"))
    return same and plan["master_copies"] and not of_config["master_copies"]


def main():
    wrong = 0
    for name, config in CASES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            plan = plan_of(folder)
        counts = counted(model, config.vocab_size)
        # Rotary embeddings multiply positions and frequencies as a bmm of sums of length 1: no weight is in it.
        products = sum(flops for operator, flops in counts.items() if str(operator) != "aten.bmm")
        weights = model.num_parameters()
        equal = plan["parameters"]["total"] == weights and plan["flops_per_step"]["linear"] == products and reads_headers(model, plan)
        wrong += not equal
        print(f"{name}: {weights} weights, {plan['parameters']['total']} planned; {products} operations of products, "
              f"{plan['flops_per_step']['linear']} planned{'' if equal else '  DIFFERS'}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
