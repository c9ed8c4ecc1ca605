"""Mixers saved by timm: logits, every gradient, 20 training steps, and the files that Lathe writes back.

  python mixer.py [--full]      --full: also mixer_b16_224 and both at batch 4
"""
import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file

from common import scratch, worst
from timm_models import timm

STEP = os.environ["MIXER_STEP"]


def model_of(name, **sizes):
    torch.manual_seed(0)
    # timm's factory lets no name's patches, blocks and width be changed.
    model = timm.models.mlp_mixer.MlpMixer(**sizes) if "embed_dim" in sizes else timm.create_model(name, **sizes)
    with torch.no_grad():  # timm's head is zero: every gradient below it would be
        model.head.weight.normal_(0, 0.02)
    return model


def save(model, directory, name, sizes):
    save_file(model.state_dict(), os.path.join(directory, "model.safetensors"))
    config = {"architecture": name, "num_classes": model.num_classes, "pretrained_cfg": {"mean": [0.5], "std": [0.5]}}
    arguments = {key: value for key, value in sizes.items() if key != "num_classes"}
    if arguments:
        config["model_args"] = arguments
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)


def train(model, pixels, labels, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def check(name, batch, steps, **sizes):
    model = model_of(name, **sizes)
    _, channels, height, width = (1, *[model.stem.proj.weight.shape[1]], *model.stem.img_size)
    pixels = torch.sin(torch.arange(batch * channels * height * width) * 0.37).view(batch, channels, height, width)
    labels = torch.arange(batch) % model.num_classes
    with scratch() as work:
        before, after = os.path.join(work, "timm"), os.path.join(work, "lathe")
        os.mkdir(before)
        os.mkdir(after)
        save(model, before, name, sizes)
        save_file({"pixel_values": pixels, "labels": labels}, os.path.join(work, "batch.safetensors"))
        done = subprocess.run([STEP, before, os.path.join(work, "batch.safetensors"), after, str(steps)],
                              capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"mixer_step: exit {done.returncode}\n{done.stderr[-2000:]}")
        ours = load_file(os.path.join(after, "results.safetensors"))
        logits = model(pixels)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        worst(f"{name} logits", ours["logits"], logits.detach(), 1e-5 * float(logits.detach().abs().max()))
        largest = max(float(parameter.grad.abs().max()) for parameter in model.parameters())
        for key, parameter in model.named_parameters():
            # What token mixing adds to all channels of a token alike, the next norm takes away: this gradient is zero
            # but for rounding.
            scale = largest if key.endswith("mlp_tokens.fc2.bias") else float(parameter.grad.abs().max())
            worst(f"{name} gradient of {key}", ours["grad." + key], parameter.grad, 1e-5 * scale)
        written = load_file(os.path.join(after, "model.safetensors"))
        for key, value in model.state_dict().items():
            if not torch.equal(written.pop(key), value):
                sys.exit(f"FAILED {name}: {key} changed on the way")
        if written:
            sys.exit(f"FAILED {name}: {sorted(written)} are not timm's")
        if "embed_dim" not in sizes:
            again = timm.create_model("local-dir:" + after, pretrained=True)
            worst(f"{name} opened by timm", again(pixels).detach(), logits.detach(), 0)
        losses = json.loads(done.stdout)["losses"]
        worst(f"{name} losses of {steps} steps", torch.tensor(losses), torch.tensor(train(model, pixels, labels, steps)),
              0, 1e-4)


ODD = {"img_size": [12, 20], "patch_size": 4, "in_chans": 2, "num_blocks": 3, "embed_dim": 50,
       "mlp_ratio": [0.7, 3.3], "num_classes": 7}
full = "--full" in sys.argv
check("mixer_s16_224", 5, 20, **ODD)
check("mixer_s16_224", 4 if full else 1, 20 if full else 2, num_classes=1000)
check("mixer_b16_224", 4 if full else 1, 20 if full else 1, num_classes=1000)
