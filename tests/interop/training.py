"""Thirty optimizer steps equal transformers + PEFT, step by step: the same adapter, the same order, accumulation 2, ragged lengths, and
windows that an epoch's end cuts short."""
import json
import os

import common
import finetune
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForSequenceClassification

STEPS, BATCH, ACCUMULATION, SAMPLES, WARMUP, LR, LENGTH = 30, 4, 2, 21, 3, 1e-3, 64

with common.scratch() as folder:
    torch.manual_seed(5)
    model = BertForSequenceClassification.from_pretrained(common.MODEL, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])).train()
    start = os.path.join(folder, "start")
    model.save_pretrained(start)
    rows = common.mails("train", SAMPLES)
    names = ["ham", "spam"]
    data = common.write_jsonl(os.path.join(folder, "train.jsonl"), rows)
    recipe = os.path.join(folder, "recipe.yaml")
    with open(recipe, "w") as file:
        json.dump({"model": {"path": common.MODEL, "task": "classification", "dropout": 0, "max_length": LENGTH},
                   "adapter": {"type": "lora", "from": start}, "data": {"train": data, "labels": names, "shuffle": False},
                   "optimizer": {"lr": LR, "schedule": "linear", "num_warmup_steps": WARMUP, "weight_decay": 0.01, "clip_grad_norm": 1.0},
                   "training": {"max_steps": STEPS, "batch_size": BATCH, "gradient_accumulation_steps": ACCUMULATION},
                   "output": {"dir": os.path.join(folder, "run")}}, file)
    common.lathe("train", recipe)
    with open(os.path.join(folder, "run", "metrics.jsonl")) as file:
        metrics = [json.loads(line) for line in file]
    labels = torch.tensor([names.index(row["label"]) for row in rows])
    losses, norms = finetune.train(model, rows, AutoTokenizer.from_pretrained(common.MODEL), labels, STEPS, BATCH, ACCUMULATION, LENGTH, LR, WARMUP)
    common.worst("losses of 30 steps", torch.tensor([line["loss"] for line in metrics]), losses, 0, 1e-4)
    common.worst("gradient norms of 30 steps", torch.tensor([line["grad_norm"] for line in metrics]), norms, 0, 1e-3)
    final = os.path.join(folder, "final")
    model.save_pretrained(final)
    expected, ours = (load_file(os.path.join(d, "adapter_model.safetensors")) for d in (final, os.path.join(folder, "run", "adapter")))
    assert expected.keys() == ours.keys(), sorted(expected.keys() ^ ours.keys())
    for name, tensor in expected.items():
        difference = float((ours[name] - tensor).abs().max())
        assert difference <= 1e-4, (name, difference)
    print(f"final adapter: largest difference {max(float((ours[n] - t).abs().max()) for n, t in expected.items()):.3g} in {len(expected)} tensors (bound 1e-4)")
