"""Fine-tuning as transformers + PEFT do it, for comparisons step by step."""
import torch
from transformers import get_linear_schedule_with_warmup

SETTINGS = dict(weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8)


def windows(samples, batch_size, accumulation):
    """Sample indices of each optimizer step, without end: a window ends with its epoch."""
    while True:
        for start in range(0, samples, batch_size * accumulation):
            window = range(start, min(start + batch_size * accumulation, samples))
            yield [list(window[i:i + batch_size]) for i in range(0, len(window), batch_size)]


def train(model, rows, tokenizer, labels, steps, batch_size, accumulation, length, lr, warmup):
    """Losses and gradient norms of `steps` steps of AdamW with a linear schedule."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed, plain = [p for p in trained if p.dim() >= 2], [p for p in trained if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=lr, **SETTINGS)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    losses, norms = [], []
    for _, window in zip(range(steps), windows(len(rows), batch_size, accumulation)):
        total = sum(map(len, window))
        loss_sum = 0.0
        for indices in window:
            batch = tokenizer([rows[i]["text"] for i in indices], padding=True, truncation=True, max_length=length, return_tensors="pt")
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
