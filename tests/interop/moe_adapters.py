"""LoRA on experts goes both ways: target_parameters of PEFT over transformers' blocks (Mixtral, Qwen3-MoE, DeepSeek-V3), and
experts as linear layers one by one. Outputs, input gradients, gradients of A and B, merged weights, and the files."""
import json
import os
import subprocess
import sys

import common
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, MixtralConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeMLP, Qwen3MoeSparseMoeBlock

RUN = os.environ.get("MOE_BLOCK_RUN", "moe_block_run")
H, F, E, T = 48, 40, 8, 96
MIXTRAL = MixtralConfig(hidden_size=H, intermediate_size=F, num_local_experts=E, num_experts_per_tok=2)
QWEN3 = Qwen3MoeConfig(hidden_size=H, moe_intermediate_size=F, num_experts=E, num_experts_per_tok=3, norm_topk_prob=True)
DEEPSEEK = DeepseekV3Config(hidden_size=H, moe_intermediate_size=F, n_routed_experts=E, num_experts_per_tok=3, n_group=4, topk_group=2, n_shared_experts=2)


class MixtralMLP(torch.nn.Module):
    """Mixtral's expert as transformers 4 had it."""

    def __init__(self):
        super().__init__()
        self.w1, self.w3 = torch.nn.Linear(H, F, bias=False), torch.nn.Linear(H, F, bias=False)
        self.w2 = torch.nn.Linear(F, H, bias=False)

    def forward(self, x):
        return self.w2(torch.nn.functional.silu(self.w1(x)) * self.w3(x))


class OneByOne(torch.nn.Module):
    """The block of Qwen3-MoE or Mixtral with an MLP of linear layers for each expert, as transformers 4 had it."""

    def __init__(self, config):
        super().__init__()
        mixtral = config.model_type == "mixtral"
        self.gate = (MixtralSparseMoeBlock if mixtral else Qwen3MoeSparseMoeBlock)(config).gate
        self.experts = torch.nn.ModuleList(MixtralMLP() if mixtral else Qwen3MoeMLP(config, intermediate_size=F) for _ in range(E))

    def forward(self, x):
        rows = x.view(-1, H)
        _, weights, chosen = self.gate(rows)
        out = torch.zeros_like(rows)
        for e, expert in enumerate(self.experts):
            token, place = torch.where(chosen == e)
            out = out.index_add(0, token, expert(rows[token]) * weights[token, place, None])
        return out.view(x.shape)


BOTH = dict(target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
CASES = {
    "mixtral, both parameters": (MixtralSparseMoeBlock, MIXTRAL, dict(r=3, lora_alpha=6, **BOTH)),
    "mixtral, one parameter, rslora": (MixtralSparseMoeBlock, MIXTRAL, dict(r=4, lora_alpha=3, use_rslora=True, target_modules=[], target_parameters=["experts.gate_up_proj"])),
    "qwen3, ranks by pattern": (Qwen3MoeSparseMoeBlock, QWEN3, dict(r=2, lora_alpha=4, rank_pattern={"experts.down_proj": 5}, alpha_pattern={"down_proj": 7}, **BOTH)),
    "deepseek_v3": (DeepseekV3MoE, DEEPSEEK, dict(r=3, lora_alpha=6, **BOTH)),
    "qwen3, experts one by one": (OneByOne, QWEN3, dict(r=3, lora_alpha=6, target_modules=["gate_proj", "up_proj", "down_proj"], rank_pattern={r"experts\.2\.up_proj": 5})),
    "mixtral, experts one by one": (OneByOne, MIXTRAL, dict(r=3, lora_alpha=6, target_modules=["w1", "w2", "w3"], rank_pattern={r"experts\.2\.w3": 5})),
    "qwen3, some experts": (OneByOne, QWEN3, dict(r=3, lora_alpha=6, target_modules=["experts.1.up_proj", "experts.6.down_proj"])),
}


def close(name, actual, expected):
    common.worst(name, actual, expected.detach(), 2e-5 * float(expected.detach().abs().max()))


def made(kind, config):
    torch.manual_seed(3)
    config._experts_implementation = "eager"
    block = kind(config).train()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def check(name, kind, config, options, folder):
    block = made(kind, config)
    files = {part: os.path.join(folder, part + ".safetensors") for part in ("weights", "inputs", "out")}
    config_path = os.path.join(folder, "config.json")
    with open(config_path, "w", encoding="utf-8") as file:
        json.dump(config.to_dict(), file)
    save_file(common.experts_on_disk(block.state_dict(), config.model_type, "p."), files["weights"])
    x, grad = torch.randn(1, T, H), torch.randn(1, T, H)
    save_file({"x": x[0], "grad": grad[0]}, files["inputs"])
    adapted = get_peft_model(block, LoraConfig(**options))
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.1)
    theirs, ours = os.path.join(folder, "peft"), os.path.join(folder, "lathe")
    adapted.save_pretrained(theirs)
    os.mkdir(ours)
    done = subprocess.run([RUN, config_path, files["weights"], "p.", files["inputs"], files["out"], theirs, ours], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}")
    out = load_file(files["out"])
    x.requires_grad_()
    y = adapted(x)
    y.backward(grad)
    close(f"{name}: output", out["y"], y[0])
    close(f"{name}: input gradient", out["dx"], x.grad[0])
    grads = {"grad." + n.removeprefix("base_model.model.").replace(".default", ""): p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    assert {n for n in out if n.startswith("grad.")} == grads.keys(), "other adapter matrices than PEFT's"
    for part in ("lora_A", "lora_B"):
        names = [n for n in grads if part in n]
        close(f"{name}: gradients of {len(names)} {part}", torch.cat([out[n].flatten() for n in names]), torch.cat([grads[n].flatten() for n in names]))
    close(f"{name}: merged", out["y_merged"], y[0])
    written, read = load_file(os.path.join(ours, "adapter_model.safetensors")), load_file(os.path.join(theirs, "adapter_model.safetensors"))
    assert written.keys() == read.keys() and all(torch.equal(written[n], read[n]) for n in read), "the file changes on its way"
    again = PeftModel.from_pretrained(made(kind, config), ours).eval()
    with torch.no_grad():
        close(f"{name}: Lathe -> PEFT", again(x)[0], y[0])


with common.scratch() as scratch:
    for number, (name, case) in enumerate(CASES.items()):
        folder = os.path.join(scratch, str(number))
        os.mkdir(folder)
        check(name, *case, folder)
