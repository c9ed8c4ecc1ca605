"""Adapters go both ways: one saved by PEFT gives the same logits here, one trained and saved here gives the same in PEFT."""
import itertools
import json
import os
import sys

import common
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForSequenceClassification

TOLERANCE = 1e-5
CONFIGS = {
    "list of targets": dict(target_modules=["query", "value"]),
    "regular expression": dict(target_modules=r".*layer\.[0-3]\.attention\.self\.(query|key)"),
    "all-linear": dict(target_modules="all-linear"),
    "default targets": dict(),
    "rank_pattern and alpha_pattern": dict(target_modules=["query", "dense"], rank_pattern={r"layer\.1\..*query": 3, "dense": 5},
                                           alpha_pattern={"^bert.encoder.layer.0.attention.self.query": 1, r"output\.dense": 7}),
    "use_rslora": dict(target_modules=["key", "value"], use_rslora=True),
    "exclude_modules": dict(target_modules=["query", "value"], exclude_modules=["layer.2.attention.self.query"]),
    "modules_to_save": dict(target_modules=["query"], modules_to_save=["classifier", "pooler"]),
}


def base():
    torch.manual_seed(3)
    return BertForSequenceClassification.from_pretrained(common.MODEL, num_labels=3).eval()


def peft_logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def lathe_logits(adapter, mails, folder, name):
    out = os.path.join(folder, name + ".safetensors")
    common.lathe("logits", "--model", common.MODEL, "--adapter", adapter, "--jsonl", mails, "--out", out, "--truncate")
    return load_file(out)["logits"]


with common.scratch() as folder:
    rows = common.mails("test", 8)
    mails = common.write_jsonl(os.path.join(folder, "mails.jsonl"), rows)
    tokenizer = AutoTokenizer.from_pretrained(common.MODEL)
    batch = tokenizer([row["text"] for row in rows], padding=True, truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt")

    for number, (name, options) in enumerate(CONFIGS.items()):
        model = get_peft_model(base(), LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=6, **options)).eval()
        with torch.no_grad():  # a B that is not zero, or the adapter would not matter
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=0.05)
        directory = os.path.join(folder, f"peft-{number}")
        model.save_pretrained(directory)
        common.worst(f"PEFT -> Lathe, {name}", lathe_logits(directory, mails, folder, f"a{number}"), peft_logits(model, batch), TOLERANCE)

        # And on: Lathe starts from it, writes it again, PEFT reads that.
        run = os.path.join(folder, f"run-{number}")
        data = common.write_jsonl(os.path.join(folder, "train.jsonl"), [{"text": row["text"], "label": str(i % 3)} for i, row in enumerate(rows)])
        recipe = os.path.join(folder, "recipe.yaml")
        with open(recipe, "w") as file:
            json.dump({"model": {"path": common.MODEL, "task": "classification", "max_length": 64}, "adapter": {"type": "lora", "from": directory},
                       "data": {"train": data, "labels": ["0", "1", "2"]}, "optimizer": {"lr": 1e-3, "schedule": "constant"},
                       "training": {"max_steps": 2, "batch_size": 4}, "output": {"dir": run}}, file)
        common.lathe("train", recipe)
        saved = os.path.join(run, "adapter")
        # A head that modules_to_save does not carry would be random on load: the base here has the same seed.
        reread = PeftModel.from_pretrained(base(), saved).eval()
        common.worst(f"Lathe -> PEFT, {name}", lathe_logits(saved, mails, folder, f"b{number}"), peft_logits(reread, batch), TOLERANCE)
        moved = max(float((a - b).abs().max()) for a, b in zip(load_file(os.path.join(saved, "adapter_model.safetensors")).values(),
                                                               load_file(os.path.join(directory, "adapter_model.safetensors")).values()))
        if moved == 0:
            sys.exit(f"FAILED {name}: training changed nothing")
