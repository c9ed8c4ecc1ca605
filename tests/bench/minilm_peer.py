"""The same step as minilm_step.cc by transformers + PEFT: minilm_peer.py MODEL ROWS.jsonl STEPS [DROPOUT]

ROWS hold "input_ids", or "text" that is tokenised first, to 128 tokens at most.
"""
import json
import os
import resource
import sys
import time

start = time.perf_counter()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, BertForSequenceClassification

model_path, rows_path, steps, *dropout = sys.argv[1:]
rows = [json.loads(line) for line in open(rows_path)]
if "text" in rows[0]:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    batch = tokenizer([row["text"] for row in rows], padding=True, truncation=True, max_length=128, return_tensors="pt")
    input_ids, mask = batch["input_ids"], batch["attention_mask"]
else:
    input_ids = torch.tensor([row["input_ids"] for row in rows])
    mask = torch.ones_like(input_ids)
names = sorted({row["label"] for row in rows})
labels = torch.tensor([names.index(row["label"]) for row in rows])
rates = dict(hidden_dropout_prob=float(dropout[0]), attention_probs_dropout_prob=float(dropout[0])) if dropout else {}
torch.manual_seed(0)
model = BertForSequenceClassification.from_pretrained(model_path, num_labels=2, **rates)
model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def own_cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


result = dict(cpu_s=[], wall_s=[], losses=[])
for step in range(int(steps)):
    cpu, wall = own_cpu(), time.perf_counter()
    loss = model(input_ids=input_ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    result["losses"].append(loss.item())
    result["cpu_s"].append(own_cpu() - cpu)
    result["wall_s"].append(time.perf_counter() - wall)
    if step == 0:
        result["to_first_step_s"] = time.perf_counter() - start
result["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
result["threads"] = torch.get_num_threads()
print(json.dumps(result))
