"""Thirty optimizer steps equal transformers + PEFT, step by step: the same adapter, the same order, accumulation 2, ragged lengths, and
windows that an epoch's end cuts short."""
import json
import os

import common
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForSequenceClassification, get_linear_schedule_with_warmup

STEPS, BATCH, ACCUMULATION, SAMPLES, WARMUP, LR, LENGTH = 30, 4, 2, 21, 3, 1e-3, 64
SETTINGS = dict(weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8)


def windows():
    """Sample indices of each optimizer step: a window ends with its epoch."""
    while True:
        for start in range(0, SAMPLES, BATCH * ACCUMULATION):
            window = range(start, min(start + BATCH * ACCUMULATION, SAMPLES))
            yield [list(window[i:i + BATCH]) for i in range(0, len(window), BATCH)]


def peer(model, rows, tokenizer, labels):
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed, plain = [p for p in trained if p.dim() >= 2], [p for p in trained if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=LR, **SETTINGS)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses, norms = [], []
    for _, window in zip(range(STEPS), windows()):
        total = sum(map(len, window))
        loss_sum = 0.0
        for indices in window:
            batch = tokenizer([rows[i]["text"] for i in indices], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
            logits = model(**batch).logits
            loss = torch.nn.functional.cross_entropy(logits, labels[indices], reduction="sum") / total
            loss.backward()
            loss_sum += loss.item()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss_sum)
    return torch.tensor(losses), torch.tensor(norms)


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
    losses, norms = peer(model, rows, AutoTokenizer.from_pretrained(common.MODEL), labels)
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
