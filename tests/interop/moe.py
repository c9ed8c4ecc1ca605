"""The blocks of Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE and DeepSeek-V3: outputs, input gradients, weight gradients and the
auxiliary loss equal transformers' from the same file, per-expert and fused layouts round-trip, bad files are refused."""
import json
import os
import subprocess
import sys

import common
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, MixtralConfig, OlmoeConfig, Qwen2MoeConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

RUN = os.environ.get("MOE_BLOCK_RUN", "moe_block_run")
H, F, E, T = 48, 40, 8, 96
CASES = {
    "mixtral": (MixtralSparseMoeBlock, MixtralConfig(hidden_size=H, intermediate_size=F, num_local_experts=E, num_experts_per_tok=2)),
    "qwen2_moe": (Qwen2MoeSparseMoeBlock, Qwen2MoeConfig(hidden_size=H, moe_intermediate_size=F, shared_expert_intermediate_size=56, num_experts=E, num_experts_per_tok=4)),
    "qwen3_moe": (Qwen3MoeSparseMoeBlock, Qwen3MoeConfig(hidden_size=H, moe_intermediate_size=F, num_experts=E, num_experts_per_tok=3, norm_topk_prob=True)),
    "olmoe": (OlmoeSparseMoeBlock, OlmoeConfig(hidden_size=H, intermediate_size=F, num_experts=E, num_experts_per_tok=2)),
    "deepseek_v3": (DeepseekV3MoE, DeepseekV3Config(hidden_size=H, moe_intermediate_size=F, n_routed_experts=E, num_experts_per_tok=3, n_group=4, topk_group=2,
                                                    n_shared_experts=2)),
}


def run(*words, code=0):
    done = subprocess.run([RUN, *words], capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"{' '.join(words)}: exit {done.returncode}, expected {code}\n{done.stderr[-2000:]}")
    return done.stderr


def close(name, actual, expected):
    common.worst(name, actual, expected.detach(), 2e-5 * float(expected.detach().abs().max()))


def refused(folder, config, tensors, prefix, inputs, message):
    path = os.path.join(folder, "bad.safetensors")
    save_file(tensors, path)
    text = run(config, path, prefix, inputs, os.path.join(folder, "o"), os.path.join(folder, "f"), code=3)
    if message not in text:
        sys.exit(f"expected {message!r}, got {text}")
    print("refused:", message)


def check(kind, block_type, config, folder):
    torch.manual_seed(3)
    config._experts_implementation = "eager"
    block = block_type(config).train()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if kind == "deepseek_v3":
        block.gate.e_score_correction_bias.copy_(torch.randn(E) - 2)
    prefix = "model.layers.3.block_sparse_moe." if kind == "mixtral" else "model.layers.3.mlp."
    files = {name: os.path.join(folder, name + ".safetensors") for name in ("weights", "inputs", "out", "fused", "out2", "fused2")}
    config_path = os.path.join(folder, "config.json")
    with open(config_path, "w", encoding="utf-8") as file:
        json.dump(config.to_dict(), file)
    weights = common.experts_on_disk(block.state_dict(), kind, prefix)
    x, grad = torch.randn(1, T, H), torch.randn(1, T, H)
    save_file(weights, files["weights"])
    save_file({"x": x[0], "grad": grad[0]}, files["inputs"])
    run(config_path, files["weights"], prefix, files["inputs"], files["out"], files["fused"])
    ours = load_file(files["out"])
    x.requires_grad_()
    y = block(x)
    y.backward(grad)
    close(f"{kind} output", ours["y"], y[0])
    close(f"{kind} input gradient", ours["dx"], x.grad[0])
    grads = common.experts_on_disk({name: p.grad for name, p in block.named_parameters()}, kind, "grad.")
    for name, expected in grads.items():
        if not name.startswith("grad.experts."):
            close(f"{kind} {name}", ours[name], expected)
    experts = [name for name in grads if name.startswith("grad.experts.")]
    close(f"{kind} gradients of {len(experts)} expert matrices", torch.cat([ours[n].flatten() for n in experts]), torch.cat([grads[n].flatten() for n in experts]))
    logits, _, _ = block.gate(x.detach().view(-1, H))
    if kind != "deepseek_v3":  # which has no such loss
        theirs = load_balancing_loss_func((logits,), E, config.num_experts_per_tok) / config.num_experts_per_tok
        common.worst(f"{kind} auxiliary loss over top_k", ours["aux_loss"], theirs.detach(), 1e-6)
    for name, tensor in weights.items():
        assert torch.equal(ours[name], tensor), name
    fused = load_file(files["fused"])
    assert torch.equal(fused[prefix + "experts.gate_up_proj"], block.experts.gate_up_proj), "gate_up_proj"
    run(config_path, files["fused"], prefix, files["inputs"], files["out2"], files["fused2"])
    again = load_file(files["out2"])
    assert again.keys() == ours.keys() and all(torch.equal(again[name], ours[name]) for name in ours), "the fused layout computes something else"
    some, *_ = [name for name in weights if ".experts.2." in name]
    args = (prefix, files["inputs"])
    refused(folder, config_path, {n: t for n, t in weights.items() if n != some}, *args, f"{some}: is missing")
    refused(folder, config_path, {**weights, some: weights[some][:, 1:].contiguous()}, *args, f"{some}: expected shape")
    refused(folder, config_path, {**weights, prefix + "experts.gate_up_proj": fused[prefix + "experts.gate_up_proj"]}, *args,
            f"{prefix}experts.gate_up_proj: stands beside")


with common.scratch() as scratch:
    for kind, (block_type, config) in CASES.items():
        folder = os.path.join(scratch, kind)
        os.mkdir(folder)
        check(kind, block_type, config, folder)
