"""Trajectories of torch.optim (torch 2.13.0, CPU) and learning-rate factors of transformers 5.23.0: python optim.py writes
optim.safetensors beside itself. 200 steps on fixed gradients; a matrix [3, 4] and a vector [3] (weight decay on the matrix only)."""
import os

import torch
import transformers
from safetensors.torch import save_file

STEPS = 200
OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.98), "eps": 1e-7}, 0.1),
    "adam": (torch.optim.Adam, {"betas": (0.8, 0.99), "eps": 1e-8}, 0.05),
    "sgd": (torch.optim.SGD, {}, 0.01),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, 0.01),
    "nesterov": (torch.optim.SGD, {"momentum": 0.8, "nesterov": True}, 0.02),
}
SCHEDULES = {
    "constant": lambda o: transformers.get_constant_schedule_with_warmup(o, 20),
    "linear": lambda o: transformers.get_linear_schedule_with_warmup(o, 20, STEPS),
    "cosine": lambda o: transformers.get_cosine_schedule_with_warmup(o, 20, STEPS),
    "cosine_min": lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(o, 20, STEPS, min_lr_rate=0.1),
    "inverse_sqrt": lambda o: transformers.get_inverse_sqrt_schedule(o, 20),
    "inverse_sqrt_cold": lambda o: transformers.get_inverse_sqrt_schedule(o, 0),
    "wsd": lambda o: transformers.get_wsd_schedule(o, 20, 60, STEPS, min_lr_ratio=0.1),
}


def optimizer_paths(tensors):
    for name, (kind, options, decay) in OPTIMIZERS.items():
        matrix = torch.nn.Parameter(tensors["start.matrix"].clone())
        vector = torch.nn.Parameter(tensors["start.vector"].clone())
        optimizer = kind([{"params": [matrix], "weight_decay": decay}, {"params": [vector], "weight_decay": 0.0}], lr=1.0, **options)
        path = {"matrix": [], "vector": []}
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = tensors["lr"][step].item()
            matrix.grad, vector.grad = tensors["grad.matrix"][step].clone(), tensors["grad.vector"][step].clone()
            optimizer.step()
            path["matrix"].append(matrix.detach().clone())
            path["vector"].append(vector.detach().clone())
        for part, values in path.items():
            tensors[f"{name}.{part}"] = torch.stack(values)


def schedule_factors(tensors):
    for name, make in SCHEDULES.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make(optimizer)
        factors = []
        for _ in range(STEPS):
            factors.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        tensors[f"schedule.{name}"] = torch.tensor(factors, dtype=torch.float64)


torch.manual_seed(0)
golden = {
    "start.matrix": torch.randn(3, 4),
    "start.vector": torch.randn(3),
    "grad.matrix": torch.randn(STEPS, 3, 4),
    "grad.vector": torch.randn(STEPS, 3),
    "lr": 0.02 * (1 + torch.arange(STEPS, dtype=torch.float64) % 7) / 7,
}
optimizer_paths(golden)
schedule_factors(golden)
save_file(golden, os.path.join(os.path.dirname(os.path.abspath(__file__)), "optim.safetensors"),
          metadata={"torch": torch.__version__, "transformers": transformers.__version__})
