"""Makes the golden files beside it, with the reference implementations.

    python formats.py

safetensors 0.8.0, torch 2.13.0 (github.com/huggingface/safetensors): what its writer writes, byte for byte.
peft 0.21.2, transformers 5.23.0: adapters of a tiny BERT, the list of its parameters, what each target rule matches.
"""

import ctypes
import json
import pathlib
import shutil
import tempfile
import warnings

import peft
import torch
import transformers
from safetensors import TensorSpec, serialize
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
warnings.filterwarnings("ignore")
TINY = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=12, type_vocab_size=2)


def ramp(shape, dtype):
    count = torch.Size(shape).numel()
    return torch.arange(count).reshape(shape).to(dtype)


def torch_types():
    """Every dtype that both torch and the format have, a scalar, an empty tensor and a name that JSON escapes."""
    types = {
        "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "u16": torch.uint16,
        "i32": torch.int32, "u32": torch.uint32, "i64": torch.int64, "u64": torch.uint64, "f16": torch.float16,
        "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64, "c64": torch.complex64,
        "f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2,
        "f8_e4m3fnuz": torch.float8_e4m3fnuz, "f8_e5m2fnuz": torch.float8_e5m2fnuz,
    }
    tensors = {name: ramp([2, 3], dtype) for name, dtype in types.items()}
    tensors["scalar"] = torch.tensor(-1.5)
    tensors["empty"] = torch.zeros([3, 0, 2])
    tensors['quote " and é\n'] = torch.tensor([7], dtype=torch.uint8)
    save_file(tensors, HERE / "torch_types.safetensors", metadata={"format": "pt"})


def all_types():
    """Every dtype that the raw writer takes: all but F6_E2M3 and F6_E3M2."""
    sizes = {"bool": 8, "float4_e2m1fn_x2": 4, "uint8": 8, "int8": 8,
             "float8_e5m2": 8, "float8_e4m3fn": 8, "float8_e8m0fnu": 8, "float8_e4m3fnuz": 8, "float8_e5m2fnuz": 8,
             "int16": 16, "uint16": 16, "float16": 16, "bfloat16": 16, "int32": 32, "uint32": 32, "float32": 32,
             "complex64": 64, "float64": 64, "int64": 64, "uint64": 64}
    specs = {}
    buffers = []
    for i, (name, bits) in enumerate(sizes.items()):
        data = ctypes.create_string_buffer(bytes((i + k) % 2 for k in range(4 * bits // 8)))
        buffers.append(data)
        shape = [2, 1] if bits == 4 else [2, 2]  # two to the byte: the interface doubles the last size
        specs[name] = TensorSpec(dtype=name, shape=shape, data_ptr=ctypes.addressof(data), data_len=4 * bits // 8)
    (HERE / "raw_types.safetensors").write_bytes(serialize(specs))


def tiny_bert(labels=3):
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TINY, num_labels=labels))


def bert_modules():
    """Names and shapes of the tiny BERT, and what transformers writes into config.json."""
    model = tiny_bert()
    linears = [[name, module.in_features, module.out_features] for name, module in model.named_modules()
               if isinstance(module, torch.nn.Linear)]
    parameters = [[name, list(parameter.shape)] for name, parameter in model.named_parameters()]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    write_json("tiny_bert.json", {"config": config, "linears": linears, "parameters": parameters})


TARGET_RULES = {
    "default": dict(),
    "leaf names": dict(target_modules=["query", "value", "dense"]),
    "dotted suffix": dict(target_modules=["output.dense"]),
    "whole path": dict(target_modules=["bert.encoder.layer.1.attention.self.key"]),
    "no partial component": dict(target_modules=["ery", "query"]),
    "regex": dict(target_modules=r"bert\.encoder\.layer\.\d+\.attention\.self\.(query|key)"),
    "regex needs the whole path": dict(target_modules=r".*layer\.0.*query|.*pooler\.den"),
    "regex with a lazy part": dict(target_modules=r".*?\.(?P<leaf>query|value)"),
    "regex lookbehind": dict(target_modules=r".*(?<!attention\.output\.)dense"),
    "all-linear": dict(target_modules="all-linear"),
    "All-Linear without pooler": dict(target_modules="All-Linear", exclude_modules=["pooler.dense"]),
    "excluded by regex": dict(target_modules=["query", "value"], exclude_modules=r".*layer\.1\..*"),
    "excluded by name": dict(target_modules=["query", "value", "dense"], exclude_modules=["output.dense", "value"]),
    "saved modules win": dict(target_modules=["query", "dense"], modules_to_save=["pooler"]),
    "saved inner component": dict(target_modules=["query", "dense"], modules_to_save=["attention"]),
    "the head is never a target": dict(target_modules=["query", "classifier"]),
    "rank by name": dict(target_modules=["query", "value"], rank_pattern={"query": 4}, alpha_pattern={"value": 32}),
    "first pattern wins": dict(target_modules=["query", "value"],
                               rank_pattern={"layer.1.attention.self.query": 2, "query": 4, r".*": 6}),
    "anchored pattern": dict(target_modules=["query", "dense"],
                             rank_pattern={r"^bert\.encoder\.layer\.0\..*": 3, r"^pooler\.dense": 5}),
    "pattern of a whole component": dict(target_modules=["query"], rank_pattern={"uery": 2, r"self\.query": 5}),
    "pattern with alternatives": dict(target_modules=["query", "value"],
                                      alpha_pattern={r"0\..*(query|value)|1\..*query": 24}),
}


def target_rules():
    cases = []
    for name, rule in TARGET_RULES.items():
        config = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, **rule)
        model = peft.get_peft_model(tiny_bert(), config)
        matched = [[path.removeprefix("base_model.model."), module.r["default"], module.lora_alpha["default"]]
                   for path, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
        cases.append({"name": name, **rule, "matched": matched})
    write_json("targets.json", cases)


def adapter():
    """A whole adapter directory, patterns and a head included."""
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=8, lora_dropout=0.05, use_rslora=True,
                             target_modules=["query", "value"], rank_pattern={"query": 3}, alpha_pattern={"value": 6})
    model = peft.get_peft_model(tiny_bert(), config)
    folder = HERE / "peft_adapter"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()


def config_defaults():
    """Every key that PEFT writes, with its default: a reader must take them all."""
    with tempfile.TemporaryDirectory() as folder:
        peft.LoraConfig(target_modules=["query"]).save_pretrained(folder)
        shutil.copy(pathlib.Path(folder) / "adapter_config.json", HERE / "peft_defaults.json")


def write_json(name, value):
    """One line per item, so that a change shows as one line."""
    rows = value if isinstance(value, list) else [f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
    rows = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    left, right = "[]" if isinstance(value, list) else "{}"
    (HERE / name).write_text(left + "\n" + ",\n".join(rows) + "\n" + right + "\n")


if __name__ == "__main__":
    torch_types()
    all_types()
    bert_modules()
    target_rules()
    adapter()
    config_defaults()
