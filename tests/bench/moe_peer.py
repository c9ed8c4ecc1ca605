"""The peer of moe_block: transformers' block with its grouped back end. As that, one step per line of stdin: moe_peer.py mixtral|qwen3"""
import json
import resource
import sys
import time

import torch
from transformers import MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

which = sys.argv[1]
if which == "mixtral":
    kind, config = MixtralSparseMoeBlock, MixtralConfig(hidden_size=1024, intermediate_size=3584, num_local_experts=8, num_experts_per_tok=2)
else:
    kind, config = Qwen3MoeSparseMoeBlock, Qwen3MoeConfig(hidden_size=1024, moe_intermediate_size=768, num_experts=64, num_experts_per_tok=8, norm_topk_prob=True)
config._experts_implementation = "grouped_mm"
torch.manual_seed(0)
block = kind(config).train()
for parameter in block.parameters():
    torch.nn.init.normal_(parameter, std=0.02)
x = torch.randn(1, 2048, 1024, requires_grad=True)
for _ in sys.stdin:
    start, before = time.perf_counter(), time.process_time()
    x.grad = None
    block.zero_grad(set_to_none=True)
    block(x).sum().backward()
    print(json.dumps({"cpu_s": time.process_time() - before, "wall_s": time.perf_counter() - start}), flush=True)
print(json.dumps({"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
