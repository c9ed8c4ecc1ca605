"""Adapters on timm's Mixers go both ways: one saved by PEFT gives the same logits here, one trained and saved here gives the same in PEFT."""
import json
import os
import sys

import common
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from timm_models import timm

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "apps"))
import small_images  # noqa: E402
from small_model import write  # noqa: E402

TOLERANCE = 1e-5
SIZES = dict(img_size=[12, 20], patch_size=4, in_chans=3, num_blocks=3, embed_dim=48, mlp_ratio=[0.75, 3.0], num_classes=3)
CONFIGS = {
    "channel and token mixing": dict(target_modules=["fc1", "fc2"]),
    "one MLP by a regular expression": dict(target_modules=r"blocks\.[01]\.mlp_tokens\.fc\d"),
    "all-linear, rsLoRA": dict(target_modules="all-linear", exclude_modules=["head"], use_rslora=True),
    "rank_pattern and the stem's norm": dict(target_modules=["fc1"], rank_pattern={"mlp_channels.fc1": 7}, modules_to_save=["head", "norm"]),
}


def base():
    torch.manual_seed(3)
    model = timm.models.mlp_mixer.MlpMixer(**SIZES).eval()
    with torch.no_grad():  # timm's head is zero
        model.head.weight.normal_(0, 0.2)
    return model


def lathe_logits(folder, adapter, name):
    out = os.path.join(folder, name + ".safetensors")
    common.lathe("logits", "--model", os.path.join(folder, "timm"), "--adapter", adapter, "--pixels", os.path.join(folder, "pixels.safetensors"), "--out", out)
    return load_file(out)["logits"]


with common.scratch() as folder:
    save_file(base().state_dict(), write(folder, "timm/model.safetensors", b""))
    sizes = {key: value for key, value in SIZES.items() if key != "num_classes"}
    write(folder, "timm/config.json", json.dumps({"architecture": "mixer_s16_224", "num_classes": 3, "model_args": sizes}))
    pixels = torch.sin(torch.arange(5 * 3 * 12 * 20) * 0.37).view(5, 3, 12, 20)
    save_file({"pixel_values": pixels}, os.path.join(folder, "pixels.safetensors"))
    for i in range(6):
        write(folder, f"pictures/{'abc'[i % 3]}/{i}.png", small_images.png(bytes((i * 37 + at * (11 + i)) % 256 for at in range(3 * 12 * 20)), 20, 3))

    for number, (name, options) in enumerate(CONFIGS.items()):
        model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=6, **{"modules_to_save": ["head"], **options})).eval()
        with torch.no_grad():  # a B that is not zero, or the adapter would not matter
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=0.05)
        directory = os.path.join(folder, f"peft-{number}")
        model.save_pretrained(directory)
        with torch.no_grad():
            common.worst(f"PEFT -> Lathe, {name}", lathe_logits(folder, directory, f"a{number}"), model(pixels), TOLERANCE)

        # And on: Lathe starts from it, writes it again, PEFT reads that.
        run = os.path.join(folder, f"run-{number}")
        recipe = {"model": {"path": "timm", "task": "image_classification"}, "adapter": {"type": "lora", "from": directory},
                  "data": {"train": "pictures"}, "optimizer": {"lr": 1e-2, "schedule": "constant"},
                  "training": {"max_steps": 3, "batch_size": 4}, "output": {"dir": run}}
        common.lathe("train", write(folder, "recipe.yaml", json.dumps(recipe)))
        saved = os.path.join(run, "adapter")
        reread = PeftModel.from_pretrained(base(), saved).eval()
        with torch.no_grad():
            common.worst(f"Lathe -> PEFT, {name}", lathe_logits(folder, saved, f"b{number}"), reread(pixels), TOLERANCE)
        before, after = (load_file(os.path.join(place, "adapter_model.safetensors")) for place in (directory, saved))
        if before.keys() != after.keys():
            sys.exit(f"FAILED {name}: {sorted(before.keys() ^ after.keys())} are not in both files")
        if not any(float((before[key] - after[key]).abs().max()) > 0 for key in before if "lora_A" in key):
            sys.exit(f"FAILED {name}: training changed nothing")
