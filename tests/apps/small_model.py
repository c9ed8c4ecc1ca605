"""A BERT small enough for tests of whole programs, written without any package, and a recipe that trains it in a second."""
import json
import math
import os
import struct

CONFIG = dict(model_type="bert", vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
              max_position_embeddings=64, type_vocab_size=2, hidden_act="gelu")


def parameters():
    wide, hidden = CONFIG["intermediate_size"], CONFIG["hidden_size"]
    for table, rows in (("word", 40), ("position", 64), ("token_type", 2)):
        yield f"bert.embeddings.{table}_embeddings.weight", [rows, hidden]
    norms = ["bert.embeddings.LayerNorm"]
    linears = [("bert.pooler.dense", hidden, hidden)]
    for layer in range(CONFIG["num_hidden_layers"]):
        base = f"bert.encoder.layer.{layer}"
        linears += [(f"{base}.attention.self.{name}", hidden, hidden) for name in ("query", "key", "value")]
        linears += [(f"{base}.attention.output.dense", hidden, hidden), (f"{base}.intermediate.dense", wide, hidden), (f"{base}.output.dense", hidden, wide)]
        norms += [f"{base}.attention.output.LayerNorm", f"{base}.output.LayerNorm"]
    for name, rows, columns in linears:
        yield f"{name}.weight", [rows, columns]
        yield f"{name}.bias", [rows]
    for name in norms:
        yield f"{name}.weight", [hidden]
        yield f"{name}.bias", [hidden]


def safetensors(tensors, patch=None):
    """A safetensors file of (name, shape); weights are a sine. `patch` may change the header."""
    header, data = {}, b""
    for name, shape in tensors:
        values = [1.0 if name.endswith("LayerNorm.weight") else 0.2 * math.sin(0.37 * i + len(name)) for i in range(math.prod(shape))]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(values)]}
        data += struct.pack(f"<{len(values)}f", *values)
    if patch:
        patch(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tokenizer():
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **{chr(97 + i): 4 + i for i in range(26)}}
    template = [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}}]
    return {"added_tokens": [], "normalizer": {"type": "BertNormalizer"}, "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "TemplateProcessing", "single": template, "special_tokens": {"[CLS]": {"ids": [2]}, "[SEP]": {"ids": [3]}}},
            "decoder": {"type": "WordPiece"}, "model": {"type": "WordPiece", "vocab": vocab}}


def write(directory, name, content):
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return path


def write_small_run(directory):
    """model/, train.jsonl (60 texts, two labels) and recipe.yaml below `directory`; returns the recipe as a dict."""
    write(directory, "model/config.json", json.dumps(CONFIG))
    write(directory, "model/model.safetensors", safetensors(list(parameters())))
    write(directory, "model/tokenizer.json", json.dumps(tokenizer()))
    rows = [{"text": " ".join(chr(97 + (i * 7 + j) % 26) for j in range(3 + i % 9)), "label": "yes" if i % 3 else "no"} for i in range(60)]
    write(directory, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"model": {"path": "model", "task": "classification"}, "adapter": {"type": "lora", "rank": 2, "alpha": 4},
              "data": {"train": "train.jsonl", "eval": "train.jsonl"}, "optimizer": {"lr": 0.01}, "training": {"epochs": 1, "batch_size": 8},
              "output": {"dir": os.path.join(directory, "run")}}
    write(directory, "recipe.yaml", json.dumps(recipe))
    return recipe


def result(run):
    """What a finished run comes to: the adapter's bytes, and its metrics without what may vary."""
    with open(os.path.join(run, "adapter", "adapter_model.safetensors"), "rb") as file:
        adapter = file.read()
    with open(os.path.join(run, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    varying = ("seconds", "tokens_per_second", "peak_rss_bytes")
    return adapter, [{key: value for key, value in line.items() if key not in varying} for line in lines]
