"""Logits of MiniLM with a head equal transformers' on 64 real e-mails, padded and not, in float32."""
import os

import common
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForSequenceClassification

torch.manual_seed(1)
with common.scratch() as folder:
    model = BertForSequenceClassification.from_pretrained(common.MODEL, num_labels=2).eval()
    directory = os.path.join(folder, "model")
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(common.MODEL)
    tokenizer.save_pretrained(directory)
    rows = common.mails("test", 64)
    path = common.write_jsonl(os.path.join(folder, "mails.jsonl"), rows)
    out = os.path.join(folder, "logits.safetensors")
    common.lathe("logits", "--model", directory, "--jsonl", path, "--out", out, "--truncate")
    ours = load_file(out)
    limit = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    batch = tokenizer([row["text"] for row in rows], padding=True, truncation=True, max_length=limit, return_tensors="pt")
    assert torch.equal(ours["input_ids"], batch["input_ids"]) and torch.equal(ours["attention_mask"], batch["attention_mask"])
    with torch.no_grad():
        expected = model(**batch).logits
    common.worst("logits of 64 e-mails", ours["logits"], expected, 2e-5)
